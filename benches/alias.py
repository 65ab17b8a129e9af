#!/usr/bin/env python3
"""What further names for a group cost in peace.

    benches/alias.py [--rounds 4] [--warm 8] [--seconds 12] [--size 1024]

Three groups of three side by side on loopback: without further names, with them and one queue of a topic under
each (groupAliasQueues=1), with them and all eight. The benchmark producer of the RocketMQ distribution (5.5.0)
loads one after the other, round by round in changing order, which takes 6 minutes. Counted is what the leader has
stored in --seconds, --warm seconds after the first message. Prints a JSON line a run and a table of medians: sends
a second, CPU seconds of the nodes for a million sends, and how both compare to the group without. A run in which
sends failed or leadership changed says so, and is not counted.
"""

import argparse
import json
import os
import random
import statistics
from contextlib import ExitStack

from cluster import Rmq, clients, move_to_own_network, work_dir
from versus import send

SETUPS = {
    "none": "",
    "1 queue": "groupAliasRoutes=true\n",
    "8 queues": "groupAliasRoutes=true\ngroupAliasQueues=8\n",
}


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
                result = send(clusters[name], options.size, options.warm, options.seconds)
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
