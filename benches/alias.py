#!/usr/bin/env python3
"""What further names for a group cost in peace.

    benches/alias.py [--rounds 4] [--warm 8] [--seconds 12] [--size 1024]

Three groups of three side by side on loopback: without further names, with them and one queue of a topic under
each (groupAliasQueues=1), with them and all eight. The benchmark producer of the RocketMQ distribution (5.5.0)
loads one after the other, round by round in changing order, which takes 6 minutes. Counted is what the leader has
stored in --seconds, --warm seconds after the first message: the producer's own reports are means of its last 10 s,
the start of its JVM among them. Prints a JSON line a run and a table of medians: sends a second, CPU seconds of the nodes for a million
sends, and how both compare to the group without. A run in which sends failed or leadership changed says so, and
is not counted.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import threading
import time
from contextlib import ExitStack

from cluster import OPENS, Rmq, clients, move_to_own_network, rpc, work_dir

SETUPS = {
    "none": "",
    "1 queue": "groupAliasRoutes=true\n",
    "8 queues": "groupAliasRoutes=true\ngroupAliasQueues=8\n",
}


def stored(cluster, leader, topic):
    """How many messages of a topic have been stored."""
    answer = rpc(cluster.addresses[leader], 202, {"topic": topic}, timeout=10)
    return sum(map(int, re.findall(rb'"maxOffset":(\d+)', answer["body"])))


def load(cluster, topic, options):
    """Sends a second, and the nodes' CPU seconds for a million, under the producer's full load."""
    leader, end = cluster.leader(), time.time() + 60
    before = stored(cluster, leader, topic)
    lib = os.path.join(cluster.cache, "java-5.5")
    logback = os.path.join(lib, "logback.xml")
    producer = subprocess.Popen(
        [
            "java", "-Xms512m", "-Xmx512m", "-XX:+UseG1GC", *OPENS, f"-Duser.home={cluster.dir}", f"-Drmq.logback.configurationFile={logback}",
            "-cp", f"{lib}/lib/*", "org.apache.rocketmq.example.benchmark.Producer",
            "-n", cluster.namesrv, "-t", topic, "-s", str(options.size), "-w", "64", "-ri", "1000",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )
    failed = [0]

    def read():
        for line in producer.stdout:
            if found := re.search(r"Send Failed: (\d+) \| Response Failed: (\d+)", line):
                failed[0] = sum(map(int, found.groups()))

    threading.Thread(target=read, daemon=True).start()
    try:
        while stored(cluster, leader, topic) == before:
            if time.time() > end or producer.poll() is not None:
                raise SystemExit(f"{cluster.name}: nothing is stored, see {cluster.dir}")
            time.sleep(0.2)
        time.sleep(options.warm)
        sent, cpu, begun = stored(cluster, leader, topic), cluster.cpu(), time.time()
        time.sleep(options.seconds)
        sent, cpu, seconds = stored(cluster, leader, topic) - sent, cluster.cpu() - cpu, time.time() - begun
    finally:
        producer.kill()
        producer.wait()
    if sent == 0:
        raise SystemExit(f"{cluster.name}: nothing was stored for {seconds:.0f} s, see {cluster.dir}")
    same = leader == cluster.leader()
    return {"per_second": sent / seconds, "cpu_s_per_million": cpu / sent * 1e6, "failed": failed[0], "same_leader": same}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--warm", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=12)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    options = parser.parse_args()
    Rmq.choose(options.binary)
    cache = clients("java")
    move_to_own_network()
    clusters = {}
    results = {}
    with work_dir("alias") as work, ExitStack() as stack:
        for n, (name, more) in enumerate(SETUPS.items()):
            kind = type(name, (Rmq,), {"name": name.replace(" ", "-"), "more": more})
            clusters[name] = stack.enter_context(kind(21000 + 400 * n, work, cache))
            clusters[name].up([f"bench{options.size}"])
        dice = random.Random(1)
        # The first round warms the nodes up and is not counted.
        for number in range(options.rounds + 1):
            for name in dice.sample(sorted(clusters), 3):
                result = load(clusters[name], f"bench{options.size}", options)
                if number > 0 and not result["failed"] and result["same_leader"]:
                    results.setdefault(name, []).append(result)
                print(json.dumps({"names": name, "round": number, **result, "load": os.getloadavg()[0]}), flush=True)
    print("\n| further names | sends a second | | CPU s a million | |\n|---|---|---|---|---|")
    medians = {
        name: [statistics.median(result[key] for result in found) for key in ("per_second", "cpu_s_per_million")]
        for name, found in results.items()
    }
    if missing := SETUPS.keys() - medians.keys():
        raise SystemExit(f"no run of {', '.join(missing)} counts")
    rate, cpu = medians["none"]
    for name in SETUPS:
        own_rate, own_cpu = medians[name]
        print(f"| {name} | {own_rate:,.0f} | {own_rate / rate:.2f} | {own_cpu:,.1f} | {own_cpu / cpu:.2f} |")


if __name__ == "__main__":
    main()
