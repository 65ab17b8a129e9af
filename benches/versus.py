#!/usr/bin/env python3
"""rmq beside other brokers on this machine, in one run, taking turns.

    benches/versus.py [--rounds 3] [--seconds 12] [--only send,bench,...] [--targets rmq,...] [--json FILE]
    benches/versus.py --json benches/versus.jsonl --publish   # goes on where it was stopped, writes docs/versus.md and .svg

Beside rmq are a Java DLedger group 4.9.7, a Java pair of SYNC_MASTER and slave 4.9.7 (two nodes, the others have
three) and NATS JetStream with three replicas, with default settings but for what a row says. Rows:

    idle      memory and CPU without clients; before it, the time from the launch to the first acknowledged send
    send      what is stored under 64 threads of the benchmark producer of the RocketMQ distribution (5.5.0), then under
              one; NATS by benches/nats
    bench     the same by `rmq bench`; NATS by benches/nats
    latency   1 KiB at 1,000 and 5,000 a second, counted from the due time (benches/java/OpenLoop.java, benches/nats), and
              by `rmq bench`
    failover  from kill -9 of the leader to the first send that a plain client, which asks all nodes in turn, gets acknowledged;
              from kill -9 and SIGSTOP of the leader until routes have another one
    restart   the same from the start of all nodes after kill -9 of all under load, and what is missing then
    sync      `send` with flushDiskType=SYNC_FLUSH
    full      `rmq bench` as fast as it goes: 4 x 512 under way, 128 B; also with SYNC_FLUSH, and a group of one
    backlog   a stock Java push consumer (4.9.8) reads --backlog messages of 1 KiB; bytes of the log for each
    catch-up  a follower that was killed gets --catch-up messages of 4 KiB, until it has them

A round takes some 20 minutes. Each measurement is a JSON line; one that the
file has of the same commit and options is not made again. Needs what `scripts/clients.sh java` and `scripts/clients.sh nats` fetch. Machines
differ and are noisy: believe ratios.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import versus_report
from cluster import ROOT, JavaDledger, JavaPair, Nats, Rmq, RmqAlone, client_command, clients, cpu_seconds, move_to_own_network, work_dir
from records import add, made_with, read_alike

SYNC = "flushDiskType=SYNC_FLUSH\n"
# Of the leader in a round, for one row.
FAULTS = 7


def client(cluster, line, main, *arguments):
    command = client_command(cluster, line, ["-Xms512m", "-Xmx512m", "-XX:+UseG1GC"], f"{cluster.dir}/classes", main, *arguments)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def send(cluster, size, warm, seconds, threads=64):
    """Under full load from the first stored message on, after `warm` seconds: what the leader stores a second, and the
    brokers' and of them the leader's CPU seconds for a million. The producer's own reports are means of its last 10 s."""
    topic = f"bench{size}"
    before = cluster.messages(topic)
    leader = cluster.leading()
    leads = cluster.nodes()[leader].pid
    if cluster.speaks_rocketmq:
        main = "org.apache.rocketmq.example.benchmark.Producer"
        options = ("-n", cluster.namesrv, "-t", topic, "-s", size, "-w", threads, "-ri", 1000)
        producer = client(cluster, "java-5.5", main, *options)
    else:
        producer = cluster.generator("send", size, threads)
    failed = [0]

    def read():
        for line in producer.stdout:
            if found := re.findall(r"(?:Send|Response) Failed: (\d+)", line):
                failed[0] = sum(map(int, found))

    threading.Thread(target=read, daemon=True).start()
    try:
        cluster.until("stored message", 60, lambda: cluster.messages(topic) > before or None)
        time.sleep(warm)
        sent, cpu, begun = cluster.messages(topic), cluster.cpu(), time.time()
        of_leader = cpu_seconds(leads)
        time.sleep(seconds)
        of_leader = cpu_seconds(leads) - of_leader
        sent, cpu, seconds = cluster.messages(topic) - sent, cluster.cpu() - cpu, time.time() - begun
    finally:
        producer.kill()
        producer.wait()
    if sent == 0:
        raise SystemExit(f"{cluster.name}: nothing was stored for {seconds:.0f} s, see {cluster.dir}")
    same = leader == cluster.leading()
    return {
        "per_second": sent / seconds, "cpu_s_per_million": cpu / sent * 1e6,
        "leader_cpu_s_per_million": of_leader / sent * 1e6, "failed": failed[0], "same_leader": same,
    }


def bench(cluster, size, seconds, in_flight, connections=1):
    if not cluster.speaks_rocketmq:
        return send(cluster, size, seconds / 2, seconds / 2, in_flight)
    pids = cluster.pids()
    options = ("-t", f"bench{size}", "-s", size, "-c", connections, "-i", in_flight, "-d", seconds)
    result = cluster.produce(*options, *pids)
    return {"per_second": result["sent"]["per_second"], "cpu_s_per_million": result["cpu"]["per_million_messages"]}


def latency(cluster, rate, seconds):
    if cluster.speaks_rocketmq:
        sender = client(cluster, "java-4.9", "OpenLoop", cluster.namesrv, "bench1024", 1024, rate, seconds // 2, seconds)
    else:
        sender = cluster.generator("open", 1024, rate, seconds // 2, seconds)
    out, _ = sender.communicate()
    return json.loads(out)


def bench_latency(cluster, rate, seconds):
    """The same without a JVM on the processors that the nodes need."""
    if not cluster.speaks_rocketmq:
        return latency(cluster, rate, seconds)
    options = ("-t", "bench1024", "-s", 1024, "-r", rate, "--warmup", seconds // 2, "-d", seconds)
    sent = cluster.produce(*options)["sent"]
    at = sent["latency_ms"]
    return {"sends": sent["messages"], "failed": sent["failed"], "p50_ms": at["p50"], "p99_ms": at["p99"], "p999_ms": at["p99_9"]}


def failover(cluster):
    leader = cluster.leading()
    with cluster.probe() as acknowledged:
        acknowledged(0)  # it is connected
        killed = cluster.kill(f"n{leader}")
        elapsed = acknowledged(killed) - killed
    cluster.start_node(leader)
    time.sleep(10)
    return {"ms": elapsed * 1000}


def new_leader(cluster, strike, mend):
    """From a fault of the leader until routes have another one."""
    took = []
    for _ in range(FAULTS):
        leader = cluster.leading()

        def other(of=leader):
            shown = cluster.shown()
            return shown not in (None, of) and cluster.leader() == shown or None

        struck = strike(leader)
        cluster.until("other leader", 60, other, pause=0.005)
        took.append((time.time() - struck) * 1000)
        mend(leader)
        time.sleep(10)
    return {"route_ms": statistics.median(took), "route_worst_ms": max(took)}


def after_kill(cluster):
    return new_leader(cluster, lambda node: cluster.kill(f"n{node}"), cluster.start_node)


def after_freeze(cluster):
    def freeze(node):
        cluster.processes[f"n{node}"].send_signal(signal.SIGSTOP)
        return time.time()

    return new_leader(cluster, freeze, lambda node: cluster.processes[f"n{node}"].send_signal(signal.SIGCONT))


def restart(cluster):
    """kill -9 of all nodes under load, all started at once."""
    before = cluster.messages("bench1024")
    with cluster.probe() as acknowledged:
        acknowledged(0)  # it is connected
        if cluster.speaks_rocketmq:
            load = ThreadPoolExecutor(1).submit(cluster.produce, "-t", "bench1024", "--warmup", 0, "-d", 4)
        else:
            load = cluster.generator("send", 1024, 64)
        time.sleep(3)
        for process in cluster.nodes():
            process.kill()
        for process in cluster.nodes():
            process.wait()
        started = time.time()
        for i in range(cluster.count):
            cluster.start_node(i)
        elapsed = acknowledged(started) - started
    if not cluster.speaks_rocketmq:
        load.kill()
        load.wait()
        return {"s": elapsed}
    # Those that were not acknowledged and are there all the same hide as many.
    expected = before + load.result()["sent"]["messages"]
    # Queues are still filled from the log when the first send is acknowledged.
    end = time.time() + 30
    while (lost := expected - cluster.messages("bench1024")) > 0 and time.time() < end:
        time.sleep(0.5)
    return {"s": elapsed, "lost": max(0, lost)}


def idle(cluster):
    time.sleep(15)
    before = cluster.cpu()
    time.sleep(10)
    return {"resident_mib": sum(cluster.resident_mib()), "cpu_percent": (cluster.cpu() - before) * 10}


def fill(cluster, topic, size, count):
    """Stores at least so many messages."""
    have = 0
    while have < count:
        options = ("-t", topic, "-s", size, "-i", 256, "--warmup", 0, "--count", count - have)
        stored = cluster.produce(*options)["sent"]["messages"]
        if stored == 0:
            raise SystemExit(f"{cluster.name}: no send was acknowledged, see {cluster.dir}")
        have += stored
    return have


def backlog(cluster, count):
    leader = cluster.leading()
    begin = cluster.log_end(leader)
    filled = fill(cluster, "backlog", 1024, count)
    log_bytes = (cluster.log_end(leader) - begin) / filled - 1024
    reader = client(cluster, "java-4.9", "Drain", cluster.namesrv, "backlog", count)
    reader.stdout.readline()
    cpu = cluster.cpu()
    read = json.loads(reader.stdout.readline())
    cpu = cluster.cpu() - cpu
    reader.kill()
    reader.wait()
    return {**read, "cpu_s_per_million": cpu / count * 1e6, "log_bytes_beyond_body": log_bytes}


def catch_up(cluster, count):
    leader = cluster.leading()
    follower = (leader + 1) % cluster.count
    cluster.kill(f"n{follower}")
    fill(cluster, "bench4096", 4096, count)
    end = cluster.log_end(leader)
    started = time.time()
    cluster.start_node(follower)
    cluster.until("follower that catches up", 1800, lambda: (cluster.log_end(follower) or 0) >= end or None, pause=0.05)
    return {"s": time.time() - started}


class Plan:
    """What is measured on a cluster of one kind with one setting, in this order."""

    def __init__(self, kinds, rows, extra="", topics=("bench128", "bench1024")):
        self.kinds, self.rows, self.extra, self.topics = kinds, rows, extra, topics


def plans(options):
    seconds, half = options.seconds, options.seconds / 2
    every = {
        "idle": [("idle", idle)],
        "send": [
            ("64 threads, 128 B", lambda c: send(c, 128, half, half)),
            ("64 threads, 1 KiB", lambda c: send(c, 1024, half, half)),
            ("one thread, 1 KiB", lambda c: send(c, 1024, half, half, 1)),
        ],
        "bench": [
            ("rmq bench, 64 under way, 128 B", lambda c: bench(c, 128, seconds, 64)),
            ("rmq bench, 64 under way, 1 KiB", lambda c: bench(c, 1024, seconds, 64)),
            ("rmq bench, one under way, 1 KiB", lambda c: bench(c, 1024, seconds, 1)),
        ],
        "latency": [
            ("1 KiB at 1,000/s", lambda c: latency(c, 1000, seconds)),
            ("1 KiB at 5,000/s", lambda c: latency(c, 5000, seconds)),
            ("rmq bench, 1 KiB at 1,000/s", lambda c: bench_latency(c, 1000, seconds)),
            ("rmq bench, 1 KiB at 5,000/s", lambda c: bench_latency(c, 5000, seconds)),
        ],
        "failover": [
            ("kill -9 of the leader", failover),
            (f"kill -9 of the leader, {FAULTS} times", after_kill),
            (f"leader frozen, {FAULTS} times", after_freeze),
        ],
        "restart": [("kill -9 of all", restart)],
    }
    full = "rmq bench, 4 x 512 under way, 128 B"
    with_backlog = {
        "backlog": [("backlog of 1 KiB, push consumer", lambda c: backlog(c, options.backlog))],
        "catch-up": [("follower that missed messages", lambda c: catch_up(c, options.catch_up))],
    }
    return [
        Plan([Rmq, JavaDledger, JavaPair, Nats], every),
        Plan([Rmq, JavaPair], {"sync": [("64 threads, 1 KiB, SYNC_FLUSH", lambda c: send(c, 1024, half, half))]}, SYNC),
        Plan([Rmq, RmqAlone], {"full": [(full, lambda c: bench(c, 128, seconds, 512, 4))]}),
        Plan([Rmq], {"full": [(full + ", SYNC_FLUSH", lambda c: bench(c, 128, seconds, 512, 4))]}, SYNC),
        Plan([Rmq, JavaDledger, JavaPair], with_backlog, topics=("backlog", "bench4096")),
    ]


# What the pair cannot: nobody takes over from its master, which acknowledges nothing without its slave.
IMPOSSIBLE = {
    (JavaPair.name, what)
    for what in (
        "kill -9 of the leader",
        f"kill -9 of the leader, {FAULTS} times",
        f"leader frozen, {FAULTS} times",
        "follower that missed messages",
    )
}


def measure(plan, kind, number, wanted, work, cache, note):
    """Starts a cluster for the measurements that are wanted of it, and makes them."""
    with kind(21000, work, cache, plan.extra) as cluster:
        with cluster.probe() as acknowledged:
            launched = time.time()
            cluster.up(plan.topics)
            elapsed = acknowledged(launched) - launched
        classes = f"{cluster.dir}/classes"
        os.makedirs(classes)
        for name in ("OpenLoop", "Drain"):
            jars = os.path.join(cache, "java-4.9/lib/*")
            subprocess.run(["javac", "-nowarn", "-cp", jars, "-d", classes, f"{ROOT}/benches/java/{name}.java"], check=True)
        if any(row == "idle" for row, _, _ in wanted):
            note(kind, number, "launch", {"s": elapsed})
        is_warm = False
        for row, what, work_on in wanted:
            # After what is measured of a cluster that nobody has used yet.
            if row in ("send", "sync") and not is_warm:
                send(cluster, 1024, 6, 6)  # warms up the JVMs; not counted
                is_warm = True
            note(kind, number, what, work_on(cluster))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=12, help="of a measurement of load; half of it is not counted")
    parser.add_argument("--only", default="all", help="rows, with commas between them")
    parser.add_argument("--targets", default="", help="names or beginnings of names of clusters; all by default")
    parser.add_argument("--backlog", type=int, default=1_000_000)
    parser.add_argument("--catch-up", type=int, default=262_144)
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    parser.add_argument("--json", metavar="FILE", help="measurements that were made, and where to add those that are")
    parser.add_argument("--publish", action="store_true", help="write docs/versus.md and docs/versus.svg")
    options = parser.parse_args()
    Rmq.choose(options.binary)
    made = made_with(Rmq.binary, {"seconds": options.seconds, "backlog": options.backlog, "catch_up": options.catch_up})
    records = read_alike(options.json, made)
    done = {(record["target"], record["round"], record["what"]) for record in records}
    todo = []
    for number in range(options.rounds):
        for plan in plans(options):
            for kind in plan.kinds:
                if options.targets and not kind.name.startswith(tuple(options.targets.split(","))):
                    continue
                wanted = [
                    (row, what, work_on)
                    for row, measurements in plan.rows.items()
                    if options.only == "all" or row in options.only.split(",")
                    for what, work_on in measurements
                    if (kind.name, number, what) not in done and (kind.name, what) not in IMPOSSIBLE
                ]
                if wanted:
                    todo.append((plan, kind, number, wanted))
    if todo:
        cache = clients("java")
        clients("nats")
        move_to_own_network()

        def note(kind, number, what, values):
            records.append(add({"target": kind.name, "round": number, "what": what, **values, **made}, options.json))

        # One after the other, never at once: two cores would measure their quarrel.
        with work_dir("versus") as work:
            for plan, kind, number, wanted in todo:
                measure(plan, kind, number, wanted, work, cache, note)
    print("\n".join(["", *versus_report.table(records)]))
    if options.publish:
        versus_report.publish(records)


if __name__ == "__main__":
    main()
