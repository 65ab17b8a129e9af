#!/usr/bin/env python3
"""What a message costs as the work grows: in its size, connections, topics, queues, backlog, consumers and nodes.

    benches/curves.py [--rounds 3] [--seconds 8] [--only size,connections,...] [--json FILE]
    benches/curves.py --json benches/curves.jsonl --publish   # goes on where it was stopped, writes docs/curves.md and .svg

Loads a group of three, begun anew for each curve and round, with `rmq bench`, one point of the curve after the other:

    size         64 sends under way, of bodies from 128 B to 1 MiB
    connections  --rate sends a second of 1 KiB by 1 to 15,000 connections, at most 5,000 of one program
    topics       the same by one connection, to 1 to 100,000 topics of one queue each
    queues       the same, to 8 to 100,000 queues, at most 1,000 to a topic
    backlog      one consumer reads 100,000 to 1,600,000 messages of 1 KiB from the start, 32 at a time
    consumers    1,000 sends a second of 1 KiB, each read at once by 1 to 16 consumers of their own
    nodes        64 sends of 1 KiB under way, to groups of 1, 3 and 5

Prints medians. The cost is that of the nodes together. Each measurement is a JSON line; one that the file has of the
same commit and options is not made again. 15,000 connections need as many open files (`ulimit -n`).
"""

import argparse
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor

import curves_report
from cluster import Rmq, move_to_own_network, work_dir
from records import add, made_with, read_alike

E2E_RATE = 1000
# Each connection of a generator takes two descriptors, for the socket and for a timer.
CONNECTIONS_EACH = 5000


def group_of(count):
    """A kind of group that has so many nodes."""
    return type("Group", (Rmq,), {"count": count})


def values(side, cpu_s_per_million):
    latency = side["latency_ms"]
    return {
        "per_second": side["per_second"], "mib_per_second": side["mib_per_second"], "p50_ms": latency["p50"],
        "p99_ms": latency["p99"], "failed": side["failed"], "cpu_s_per_million": cpu_s_per_million,
    }


def sends(cluster, options, topic, *load, warmup=2):
    result = cluster.produce("-t", topic, "--warmup", warmup, "-d", options.seconds, *load, *cluster.pids())
    return values(result["sent"], result["cpu"]["per_million_messages"])


def by_size(cluster, options, size):
    return sends(cluster, options, f"size{size}", "-s", size)


def by_connections(cluster, options, count):
    programs = -(-count // CONNECTIONS_EACH)
    each = count // programs
    # All have to be there before it begins.
    warmup = 2 + count // 500
    load = ("-t", "connections", "-c", each, "-i", max(1, 64 // each), "-r", options.rate / programs)
    load = (*load, "--warmup", warmup, "-d", options.seconds, *cluster.pids())
    cluster.create_topic("connections")
    with ThreadPoolExecutor(programs) as pool:
        runs = [pool.submit(cluster.produce, *load, name=f"bench{i}") for i in range(programs)]
        results = [run.result() for run in runs]
    found = [values(result["sent"], result["cpu"]["per_million_messages"]) for result in results]
    together = max(found, key=lambda one: one["p99_ms"])
    for summed in ("per_second", "mib_per_second", "failed"):
        together[summed] = sum(one[summed] for one in found)
    # Each divides what the nodes took by what it has sent itself.
    together["cpu_s_per_million"] = 1 / sum(1 / one["cpu_s_per_million"] for one in found)
    return together


def by_topics(cluster, options, count):
    cluster.create_topics([f"topics{count}_{i}" for i in range(count)] if count > 1 else ["topics1"], 1)
    return sends(cluster, options, f"topics{count}", "--topics", count, "--queues", 1, "-r", options.rate)


def by_queues(cluster, options, count):
    each = min(count, 1000)
    return sends(cluster, options, f"queues{count}", "--topics", count // each, "--queues", each, "-r", options.rate)


def by_backlog(cluster, options, count):
    topic = f"backlog{count}"
    cluster.produce("-t", topic, "-i", 256, "--warmup", 0, "--count", count)
    cpu = cluster.cpu()
    received = cluster.bench("consume", "-t", topic, "--warmup", 0, "--batch", 256)["received"]
    return values(received, (cluster.cpu() - cpu) / received["messages"] * 1e6)


def by_consumers(cluster, options, count):
    """Each of so many programs sends its part and reads all."""
    cluster.create_topic("consumers")
    load = ("-t", "consumers", "-r", E2E_RATE / count, "--warmup", 2, "-d", options.seconds)
    cpu = cluster.cpu()
    with ThreadPoolExecutor(count) as pool:
        runs = [pool.submit(cluster.bench, "end-to-end", *load, name=f"bench{i}") for i in range(count)]
        received = [run.result()["received"] for run in runs]
    cpu = cluster.cpu() - cpu
    delivered = E2E_RATE * (2 + options.seconds) * count
    middle = sorted(received, key=lambda side: side["latency_ms"]["p50"])[count // 2]
    rate = E2E_RATE * count
    return {**values(middle, cpu / delivered * 1e6), "per_second": rate, "mib_per_second": rate / 1024, "failed": sum(side["failed"] for side in received)}


def by_nodes(cluster, options, _):
    return sends(cluster, options, "nodes", "-s", 1024)


CURVES = {
    "size": (by_size, [128, 1024, 4096, 16384, 65536, 262144, 1048576]),
    "connections": (by_connections, [1, 10, 100, 1000, 5000, 15000]),
    "topics": (by_topics, [1, 10, 100, 1000, 10000, 100000]),
    "queues": (by_queues, [8, 100, 1000, 10000, 100000]),
    "backlog": (by_backlog, [100_000, 400_000, 1_600_000]),
    "consumers": (by_consumers, [1, 2, 4, 8, 16]),
    "nodes": (by_nodes, [1, 3, 5]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of a measurement of load, after two more")
    parser.add_argument("--rate", type=int, default=3000, help="messages a second, where that is given")
    parser.add_argument("--only", default=",".join(CURVES), help="curves")
    parser.add_argument("--most", type=int, default=10**9, help="leave out points beyond")
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    parser.add_argument("--json", metavar="FILE", help="measurements that were made, and where to add those that are")
    parser.add_argument("--publish", action="store_true", help="write docs/curves.md and docs/curves.svg")
    options = parser.parse_args()
    Rmq.choose(options.binary)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    move_to_own_network()
    made = made_with(Rmq.binary, {"seconds": options.seconds, "rate": options.rate})
    records = read_alike(options.json, made)
    done = {(record["curve"], record["x"], record["round"]) for record in records}

    def measure(kind, curve, points, number):
        work_on = CURVES[curve][0]
        with work_dir("curves") as work, kind(27000, work, None) as cluster:
            cluster.up(("warm",))
            cluster.produce("-t", "warm", "--warmup", 0, "-d", 4)
            for x in points:
                found = work_on(cluster, options, x)
                found["resident_mib"] = max(cluster.resident_mib())
                records.append(add({"curve": curve, "x": x, "round": number, **found, **made}, options.json))

    for number in range(options.rounds):
        for curve in options.only.split(","):
            points = [x for x in CURVES[curve][1] if x <= options.most and (curve, x, number) not in done]
            if curve == "nodes":
                for x in points:
                    measure(group_of(x), curve, [x], number)
            elif points:
                measure(Rmq, curve, points, number)
    print("\n".join(["", *curves_report.table(records)]))
    if options.publish:
        curves_report.publish(records)


if __name__ == "__main__":
    main()
