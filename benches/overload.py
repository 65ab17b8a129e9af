#!/usr/bin/env python3
"""What a group of three does with five times the load that it can take.

    benches/overload.py [--rounds 3] [--seconds 20] [--size 1024] [--budget 268435456] [--json FILE] [--limits]

In each round, a new group: the peak (as much under way as is taken at a time), then five times that rate by many
connections with far more under way, and meanwhile a look at memory and terms of all nodes. Afterwards it sends one
message at a time until 20 in a row are answered as fast as before the load, and takes the peak once more, for a machine
may change its pace in between. Prints:

    goodput     what is acknowledged a second, beside the mean of both peaks; what is refused and with which code
    memory      the most that a process had for itself (RssAnon) and in all (VmRSS), beside requestMemoryMaxBytes
    elections   changes of the term
    lost        acknowledged messages that are not stored
    normal      seconds from the end of the load

--limits fails where goodput is below 80 % of the peak (the median round), and where in any round RssAnon was above the
budget and what an idle broker had by more than a tenth, a term has changed, something was lost, or it took more than
10 s. --peak gives the peak instead of finding it, for a try at a tiny rate. What was due in --seconds and had to wait
is sent for ten more, and all that is taken writes some 3.6 KiB on one machine for each message of 1 KiB.
"""

import argparse
import json
import re
import statistics
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from cluster import Rmq, rpc, work_dir
from records import add, made_with

TOPIC = "overload"
PROBE = "probe"
IN_A_ROW = 20


def memory_mib(pid):
    """For itself, and in all."""
    with open(f"/proc/{pid}/status") as f:
        text = f.read()
    return [int(re.search(rf"{field}:\s+(\d+)", text).group(1)) / 1024 for field in ("RssAnon", "VmRSS")]


def term(address):
    """What a load balancer is told."""
    try:
        with urllib.request.urlopen(f"http://{address}/leader", timeout=10) as answer:
            body = answer.read()
    except urllib.error.HTTPError as refused:
        body = refused.read()
    return json.loads(body)["term"]


class Watch:
    """Looks at all nodes while it runs."""

    def __init__(self, cluster):
        self.cluster, self.largest, self.terms, self.slowest_ms = cluster, [[0, 0] for _ in cluster.nodes()], set(), 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.over.wait(0.2):
            for process, largest in zip(self.cluster.nodes(), self.largest):
                largest[:] = map(max, largest, memory_mib(process.pid))
            begun = time.time()
            self.terms.update(term(address) for address in self.cluster.addresses)
            self.slowest_ms = max(self.slowest_ms, (time.time() - begun) * 1000)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def send_one(address):
    """Milliseconds until it was acknowledged; `None` if it was not."""
    fields = {
        "a": "bench", "b": PROBE, "c": "TBW102", "d": "8", "e": "0", "f": "0", "g": "0", "h": "0", "i": "", "j": "0",
        "k": "false", "m": "false",
    }
    begun = time.time()
    try:
        acknowledged = rpc(address, 310, fields, b"x", timeout=3)["code"] == 0
    except OSError:
        return None
    return (time.time() - begun) * 1000 if acknowledged else None


def until_normal(cluster, usual_ms, since):
    """Seconds until the first of so many sends in a row that are as fast as usual."""
    end = time.time() + 300
    first, row = None, 0
    while row < IN_A_ROW:
        if time.time() > end:
            raise SystemExit(f"not normal again after 300 s, see {cluster.dir}")
        begun = time.time()
        leader = cluster.leader()
        ms = leader is not None and send_one(cluster.addresses[leader])
        if ms and ms <= usual_ms:
            first, row = first or begun, row + 1
        else:
            first, row = None, 0
        time.sleep(0.02)
    return max(0, first - since)


def find_peak(cluster, options):
    """Messages a second."""
    load = ("-t", TOPIC, "-s", options.size, "-c", 8, "-i", 512, "-d", max(options.seconds // 2, 1))
    return cluster.produce(*load)["sent"]["per_second"]


def measure(cluster, options):
    cluster.up((TOPIC, PROBE))
    leader = cluster.leading()
    idle = [memory_mib(process.pid)[0] for process in cluster.nodes()]
    alone = [send_one(cluster.addresses[leader]) for _ in range(200)]
    # Twice the slowest but one in a hundred, for a machine that does other things too.
    usual_ms = 2 * statistics.quantiles([ms for ms in alone if ms], n=100)[98]
    peaks = [options.peak or find_peak(cluster, options)]
    before = cluster.messages(TOPIC)
    terms = {term(address) for address in cluster.addresses}
    load = (
        "-t", TOPIC, "-s", options.size, "-r", peaks[0] * options.times, "-c", options.connections, "-i", options.in_flight,
        "--warmup", 0, "-d", options.seconds,
    )
    with Watch(cluster) as watch, ThreadPoolExecutor(1) as pool:
        begun = time.time()
        loading = pool.submit(cluster.produce, *load)
        time.sleep(options.seconds)
        stored = cluster.messages(TOPIC) - before
        elapsed = time.time() - begun
        sent = loading.result()["sent"]
        normal_s = until_normal(cluster, usual_ms, time.time())
    lost = max(0, sent["messages"] - (cluster.messages(TOPIC) - before))
    peaks.append(options.peak or find_peak(cluster, options))
    return {
        "peaks_per_second": peaks,
        "stored_per_second": stored / elapsed,
        "acknowledged_per_second": sent["per_second"],
        "goodput_percent": sent["per_second"] / statistics.mean(peaks) * 100,
        "failed": sent["failed"],
        "failures": sent["failures"],
        "acknowledged_lost": lost,
        "idle_anon_mib": idle,
        "anon_mib": [anon for anon, _ in watch.largest],
        "rss_mib": [rss for _, rss in watch.largest],
        "budget_mib": options.budget / 2**20,
        "elections": len(watch.terms | terms) - 1,
        "slowest_health_ms": watch.slowest_ms,
        "usual_ms": usual_ms,
        "normal_s": normal_s,
    }


def missed(results):
    """Which of the promises were not kept."""

    def fits(result):
        allowed = [1.1 * result["budget_mib"] + idle for idle in result["idle_anon_mib"]]
        return all(anon <= most for anon, most in zip(result["anon_mib"], allowed))

    promises = {
        "goodput of 80 % of the peak": statistics.median(result["goodput_percent"] for result in results) >= 80,
        "memory in the budget": all(map(fits, results)),
        "no election": all(result["elections"] == 0 for result in results),
        "nothing lost": all(result["acknowledged_lost"] == 0 for result in results),
        "normal again within 10 s": all(result["normal_s"] <= 10 for result in results),
    }
    return [promise for promise, kept in promises.items() if not kept]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=20, help="of the load that is too much")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--times", type=float, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=1024, help="of each connection")
    parser.add_argument("--budget", type=int, default=256 << 20, help="requestMemoryMaxBytes of each node")
    parser.add_argument("--peak", type=float, help="messages a second, instead of finding out")
    parser.add_argument("--extra", default="", help="more lines for the nodes' files")
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    parser.add_argument("--json", metavar="FILE", help="where to add the result")
    parser.add_argument("--limits", action="store_true", help="fail where a promise is not kept")
    options = parser.parse_args()
    Rmq.choose(options.binary)
    alike = ("seconds", "size", "times", "connections", "in_flight", "budget", "extra")
    made = made_with(Rmq.binary, {name: getattr(options, name) for name in alike})
    extra = f"requestMemoryMaxBytes={options.budget}\n{options.extra}"
    results = []
    for _ in range(options.rounds):
        with work_dir("overload") as work, Rmq(25000, work, None, extra) as cluster:
            results.append(measure(cluster, options))
        add({"what": "overload", **results[-1], **made}, options.json)
    if options.limits and (broken := missed(results)):
        raise SystemExit(f"not kept: {', '.join(broken)}")


if __name__ == "__main__":
    main()
