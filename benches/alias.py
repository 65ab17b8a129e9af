#!/usr/bin/env python3
"""What further names for a group cost in peace.

    benches/alias.py [--rounds 4] [--warm 8] [--seconds 12] [--size 1024]

Three groups of three side by side on loopback: without further names, with them and one queue of a topic under
each (groupAliasQueues=1), with them and all eight. The benchmark producer of the RocketMQ distribution (5.5.0)
loads one after the other, round by round in changing order, which takes 6 minutes. Counted is what the leader has
stored in --seconds, --warm seconds after the first message. Prints a JSON line a run and a table of medians: sends
a second, CPU seconds of all nodes for a million sends, of them the leader's, and how these compare to the group
without. Here all nodes and the producer share the processors, so that a send pays for whatever any of them does; of
nodes on machines of their own the leader's is the one that bounds the group. A run in which sends failed or
leadership changed says so, and is not counted.
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
COUNTED = ("per_second", "cpu_s_per_million", "leader_cpu_s_per_million")


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
    print("\n| further names | sends a second | | CPU s a million | | of them the leader's | |\n|---|---|---|---|---|---|---|")
    medians = {
        name: [statistics.median(result[key] for result in found) for key in COUNTED] for name, found in results.items()
    }
    if missing := SETUPS.keys() - medians.keys():
        raise SystemExit(f"no run of {', '.join(missing)} counts")
    for name in SETUPS:
        own = zip(medians[name], medians["none"], ("{:,.0f}", "{:,.1f}", "{:,.1f}"))
        print(f"| {name} |", " | ".join(f"{form.format(value)} | {value / without:.2f}" for value, without, form in own), "|")


if __name__ == "__main__":
    main()
