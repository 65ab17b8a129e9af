#!/usr/bin/env python3
"""What further names for a group cost in peace.

    benches/alias.py [--rounds 3] [--seconds 12] [--size 1024]

Three groups of three side by side on loopback: without further names, with them and one queue of a topic under
each (groupAliasQueues=1), with them and all eight. The benchmark producer of the RocketMQ distribution (5.5.0)
loads one after the other, round by round in changing order. Prints a JSON line a run and a table of medians:
sends a second, CPU seconds of the nodes for a million sends, and how both compare to the group without.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import tempfile

from versus import ROOT, Rmq, move_to_own_network, send


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=12)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    options = parser.parse_args()
    if options.binary:
        Rmq.binary = os.path.abspath(options.binary)
    else:
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--bin", "rmq"], cwd=ROOT, check=True)
    cache = subprocess.run([f"{ROOT}/scripts/clients.sh", "java"], check=True, capture_output=True, text=True).stdout.strip()
    work = tempfile.mkdtemp(prefix="rmq-alias-")
    move_to_own_network()
    clusters = {}
    results = {}
    try:
        for n, (name, more) in enumerate(
            [("none", ""), ("1 queue", "groupAliasRoutes=true\n"), ("8 queues", "groupAliasRoutes=true\ngroupAliasQueues=8\n")]
        ):
            cluster = type(name, (Rmq,), {"name": name.replace(" ", "-"), "more": more})(21000 + 400 * n, work, cache)
            clusters[name] = cluster
            cluster.up([f"bench{options.size}"])
        dice = random.Random(1)
        # The first round warms the nodes up and is not counted.
        for number in range(options.rounds + 1):
            for name in dice.sample(sorted(clusters), 3):
                result = send(clusters[name], options.size, options.seconds)
                if number > 0:
                    results.setdefault(name, []).append(result)
                    print(json.dumps({"names": name, "round": number, **result, "load": os.getloadavg()[0]}), flush=True)
    finally:
        for cluster in clusters.values():
            cluster.down()
        shutil.rmtree(work, ignore_errors=True)
    print("\n| further names | sends a second | | CPU s a million | |\n|---|---|---|---|---|")
    medians = {
        name: [statistics.median(result[key] for result in found) for key in ("per_second", "cpu_s_per_million")]
        for name, found in results.items()
    }
    rate, cpu = medians["none"]
    for name, (own_rate, own_cpu) in medians.items():
        print(f"| {name} | {own_rate:,.0f} | {own_rate / rate:.2f} | {own_cpu:,.1f} | {own_cpu / cpu:.2f} |")


if __name__ == "__main__":
    main()
