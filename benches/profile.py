#!/usr/bin/env python3
"""Where the brokers' time goes: a group of three under `rmq bench`, by thread, system call and function.

    benches/profile.py [--size 1024] [--connections 1] [--in-flight 64] [--rate N] [--seconds 8] [--sync] [--perf] [--idle]

Starts three nodes and a name server on loopback, loads them, and prints Markdown tables: for the threads of the
leader and of the followers CPU seconds per million messages and wake-ups per message (voluntary switches, which a
machine that does other things too changes little); system calls per message; with --perf the functions in which the
brokers were found most often; with --idle the share of a core and the wake-ups a second of brokers without any
client, instead of all that. System calls are counted in a run of their own (strace), and so are functions (perf),
because both slow down what they watch. `--binary` is the program of the brokers, built if not given; --generator that
of the load.
"""

import argparse
import os
import re
import subprocess
import threading
import time

from cluster import Rmq, work_dir


def tasks(pid):
    """CPU nanoseconds and wake-ups of each thread, by its name."""
    found = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/comm") as f:
            name = f.read().strip()
        with open(f"/proc/{pid}/task/{task}/schedstat") as f:
            nanoseconds = int(f.read().split()[0])
        with open(f"/proc/{pid}/task/{task}/status") as f:
            wakeups = int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", f.read(), re.M).group(1))
        old = found.get(name, (0, 0))
        found[name] = (old[0] + nanoseconds, old[1] + wakeups)
    return found


def load(cluster, options, watch=None):
    """The leader, what was sent, and what each node's threads did before and after. `watch` runs beside
    the load. Begins again if leadership has moved meanwhile, as it may on a machine that is busy elsewhere."""
    leader = cluster.leading()
    plan = [
        "-t", "bench1024", "-s", options.size, "-c", options.connections, "-i", options.in_flight, "--warmup", 0, "-d", options.seconds,
    ] + ["-r", options.rate] * bool(options.rate)
    watcher = watch and threading.Thread(target=watch)
    if watcher:
        watcher.start()
    before = [tasks(process.pid) for process in cluster.nodes()]
    sent = cluster.produce(*plan, program=options.generator)["sent"]
    after = [tasks(process.pid) for process in cluster.nodes()]
    if watcher:
        watcher.join()
    if cluster.leader() != leader:
        return load(cluster, options, watch)
    return leader, sent, before, after


def by_role(leader, before, after, unit):
    """Nanoseconds and wake-ups of the threads of the leader and of the followers together, per unit."""
    rows = {}
    for node in range(3):
        role = "leader" if node == leader else "followers"
        for name, counts in after[node].items():
            row = rows.setdefault((role, name), [0, 0])
            for i, count in enumerate(counts):
                row[i] += (count - before[node].get(name, (0, 0))[i]) / unit
    return rows


def idle(cluster, options):
    leader = cluster.leading()
    time.sleep(5)
    before = [tasks(process.pid) for process in cluster.nodes()]
    begun = time.time()
    time.sleep(options.seconds)
    elapsed = time.time() - begun
    rows = by_role(leader, before, [tasks(process.pid) for process in cluster.nodes()], elapsed)
    print("\n| node | threads | % of a core | wake-ups a second |\n|---|---|---|---|")
    for (role, name), (cpu, wakeups) in sorted(rows.items()):
        if wakeups >= 0.5:
            print(f"| {role} | {name} | {cpu / 1e7:.2f} | {wakeups:.1f} |")
    cpu, wakeups = (sum(row[i] for row in rows.values()) for i in range(2))
    print(f"| all | all | {cpu / 1e7:.2f} | {wakeups:.1f} |")


def threads(cluster, options):
    leader, sent, before, after = load(cluster, options)
    rows = by_role(leader, before, after, sent["messages"])
    print(
        f"\n{sent['messages']} messages of {options.size} B, {sent['per_second']:.0f}/s, "
        f"p50 {sent['latency_ms']['p50']:.2f} ms, {sent['failed']} failed"
    )
    print("\n| node | threads | CPU s per million messages | wake-ups per message |\n|---|---|---|---|")
    for (role, name), (cpu, wakeups) in sorted(rows.items()):
        if cpu >= 50 or wakeups >= 0.005:
            print(f"| {role} | {name} | {cpu / 1e3:.2f} | {wakeups:.3f} |")
    cpu, wakeups = (sum(row[i] for row in rows.values()) for i in range(2))
    print(f"| all | all | {cpu / 1e3:.2f} | {wakeups:.3f} |")


def calls(cluster, options):
    files = [os.path.join(cluster.dir, f"strace{node}") for node in range(3)]

    def watch():
        watching = [
            subprocess.Popen(["strace", "-c", "-f", "-o", file, "-p", str(process.pid)], stderr=subprocess.DEVNULL)
            for file, process in zip(files, cluster.nodes())
        ]
        threading.Event().wait(options.seconds + 0.5)
        for process in watching:
            process.terminate()
            process.wait()

    leader, sent, _, _ = load(cluster, options, watch)
    counts = {}
    for node, file in enumerate(files):
        with open(file) as f:
            for found in re.finditer(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", f.read(), re.M):
                if found.group(2) != "total":
                    counts.setdefault(found.group(2), [0, 0])[node != leader] += int(found.group(1)) / sent["messages"]
    print("\n| system call | leader, per message | followers, per message |\n|---|---|---|")
    for name, (of_leader, of_followers) in sorted(counts.items(), key=lambda item: -sum(item[1])):
        if of_leader + of_followers >= 0.005:
            print(f"| {name} | {of_leader:.3f} | {of_followers:.3f} |")


def functions(cluster, options):
    data = os.path.join(cluster.dir, "perf.data")
    pids = ",".join(str(process.pid) for process in cluster.nodes())

    def watch():
        command = ["perf", "record", "-q", "-F", "999", "-o", data, "-p", pids, "--", "sleep", str(options.seconds)]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)

    load(cluster, options, watch)
    report = ["perf", "report", "-i", data, "--no-children", "--sort", "symbol", "--stdio", "-w", "0,100"]
    out = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    print("\n| share | function |\n|---|---|")
    lines = [line.split(None, 1) for line in out.splitlines() if line.strip() and not line.startswith("#")]
    for share, symbol in lines[:25]:
        print(f"| {share} | `{re.split(r'  +', symbol.strip())[0]}` |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rate", type=float, help="messages a second; as many as it takes by default")
    parser.add_argument("--sync", action="store_true", help="with flushDiskType=SYNC_FLUSH")
    parser.add_argument("--perf", action="store_true")
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    parser.add_argument("--generator", help="the one that makes the load, if not the same")
    options = parser.parse_args()
    Rmq.choose(options.binary)
    with work_dir("profile") as work, Rmq(23000, work, None, "flushDiskType=SYNC_FLUSH\n" * options.sync) as cluster:
        cluster.up()
        for measure in [idle] if options.idle else [threads, calls] + [functions] * options.perf:
            measure(cluster, options)


if __name__ == "__main__":
    main()
