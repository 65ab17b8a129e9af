#!/usr/bin/env python3
"""A name server under many clients that look for routes each second.

    benches/namesrv.py [--clients 10000] [--seconds 20] [--binary target/release/rmq]

Starts a name server and a group of three with groupAliasRoutes on loopback, and benches/go/poll.go beside
them. Prints one JSON line: answers, what went wrong, how long answers took, the processor time and the memory
of the name server.
"""

import argparse
import json
import os
import re
import subprocess

from cluster import ROOT, Rmq, cpu_seconds, move_to_own_network, work_dir


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    options = parser.parse_args()
    Rmq.choose(options.binary)
    with work_dir("namesrv") as work:
        program = os.path.join(work, "poll")
        subprocess.run(["go", "build", "-o", program, f"{ROOT}/benches/go/poll.go"], check=True)
        move_to_own_network()
        with Rmq(24000, work, None, "groupAliasRoutes=true\n") as cluster:
            cluster.up(["polled"])
            pid = cluster.processes["namesrv"].pid
            before = cpu_seconds(pid)
            command = [program, cluster.namesrv, "polled", str(options.clients), str(options.seconds)]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            used = cpu_seconds(pid) - before
            with open(f"/proc/{pid}/status") as f:
                peak = int(re.search(r"VmHWM:\s+(\d+)", f.read()).group(1)) / 1024
    result.update(namesrv_cpu_percent=round(100 * used / options.seconds, 1), namesrv_peak_mib=round(peak, 1), load=os.getloadavg()[0])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
