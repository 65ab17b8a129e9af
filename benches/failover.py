#!/usr/bin/env python3
"""What the stock Java clients see when something breaks under them, fault by fault.

    benches/failover.py --faults kill-leader,rolling --clients 4.9,5.5 --count 5 [--alias] [--target dledger]

Starts three nodes and a name server on loopback, lets benches/java/Failover.java send 1,000 messages a
second with default settings (8 threads, and 64 ordered keys by a selector) and consume them, and applies
each fault COUNT times at moments drawn from --seed. Prints one JSON line a fault and a table. Columns: sends
begun after the fault that failed, those in flight at that instant that failed, the longest silence of the
producers, of the consumer as a whole and of its worst queue, ordered keys that waited longer than 1.5 s;
over all faults messages lost, stored twice, delivered again, out of order.

Faults: kill-leader (kill -9, started again after 10 s), stop-leader (SIGSTOP for 20 s), kill-follower,
rolling (SIGTERM and start, one node after the other), transfer (leadership handed over), kill-namesrv
(kill -9, started again after 2 s), none.

Needs python3 and what scripts/clients.sh fetches.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

from versus import OPENS, ROOT, JavaDledger, Rmq, rpc

PLAIN, ORDERED = "failover", "failover_ordered"


class Application:
    """Failover.java on one line of clients."""

    def __init__(self, cluster, line, options):
        base = os.path.join(cluster.cache, f"java-{line}")
        classes = os.path.join(cluster.dir, f"classes-{line}")
        os.makedirs(classes, exist_ok=True)
        source = f"{ROOT}/benches/java/Failover.java"
        subprocess.run(["javac", "-nowarn", "-cp", f"{base}/lib/*", "-d", classes, source], check=True)
        logback = os.path.join(base, "logback.xml")
        command = [
            "java", "-Xmx1g", "-XX:+UseSerialGC", *OPENS, f"-Duser.home={cluster.dir}", f"-Dlogback.configurationFile={logback}",
            f"-Drmq.logback.configurationFile={logback}", "-cp", f"{classes}:{base}/lib/*", "Failover", cluster.namesrv, PLAIN, ORDERED, "1000", *options,
        ]
        log = open(os.path.join(cluster.dir, f"application-{line}.log"), "wb")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1)
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the application has ended")
        return json.loads(line)

    def ask(self, word):
        self.process.stdin.write(word + "\n")
        return self.read()


class Faults:
    def __init__(self, cluster, dice, settle):
        self.cluster, self.dice, self.settle = cluster, dice, settle

    def kill(self, node):
        process = self.cluster.processes[f"n{node}"]
        process.kill()
        process.wait()

    def leader(self):
        end = time.time() + 60
        while (leader := self.cluster.leader()) is None:
            if time.time() > end:
                raise SystemExit(f"no leader, see {self.cluster.dir}")
            time.sleep(0.05)
        return leader

    def even(self):
        """Waits until all nodes have the same end."""
        end = time.time() + 60
        while time.time() < end:
            try:
                ends = [int(json.loads(rpc(a, 28)["body"])["table"]["commitLogMaxOffset"]) for a in self.cluster.addresses]
                if max(ends) - min(ends) < 1 << 20:
                    return
            except (OSError, ValueError, KeyError):
                pass
            time.sleep(0.1)
        raise SystemExit(f"the nodes do not come together, see {self.cluster.dir}")

    def strike(self, kind):
        getattr(self, kind.replace("-", "_"))()

    def none(self):
        time.sleep(10)

    def kill_leader(self):
        self.kill_and_start(self.leader())

    def kill_follower(self):
        leader = self.leader()
        self.kill_and_start(self.dice.choice([i for i in range(3) if i != leader]))

    def kill_and_start(self, node):
        self.kill(node)
        time.sleep(10)
        self.cluster.start_node(node)

    def stop_leader(self):
        process = self.cluster.processes[f"n{self.leader()}"]
        process.send_signal(signal.SIGSTOP)
        time.sleep(20)
        process.send_signal(signal.SIGCONT)

    def rolling(self):
        for node in self.dice.sample(range(3), 3):
            process = self.cluster.processes[f"n{node}"]
            process.terminate()
            process.wait()
            self.cluster.start_node(node)
            self.even()
            time.sleep(2)

    def transfer(self):
        leader = self.leader()
        answer = rpc(self.cluster.addresses[leader], self.cluster.transfer_code, {}, timeout=10)
        if answer["code"] != 0:
            raise SystemExit(f"transfer refused: {answer}")

    def kill_namesrv(self):
        process = self.cluster.processes["namesrv"]
        process.kill()
        process.wait()
        time.sleep(2)
        self.cluster.start_namesrv(os.path.join(self.cluster.dir, "namesrv.conf"))


class Busy:
    """How many cores the machine had busy."""

    def __init__(self):
        self.begun, self.used = time.time(), self.now()

    @staticmethod
    def now():
        with open("/proc/stat") as f:
            user, nice, system, _, _, irq, soft, *_ = map(int, f.readline().split()[1:])
        return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")

    def cores(self):
        return round((self.now() - self.used) / (time.time() - self.begun), 1)


class RmqGroup(Rmq):
    transfer_code = 0

    def __init__(self, base, work, cache, more):
        super().__init__(base, work, cache)
        self.more = more


def one(kind, cluster, faults, line, options):
    application = Application(cluster, line, [f"poll={options.poll}"] if options.poll else [])
    reports = []
    try:
        time.sleep(12)
        for number in range(options.count):
            # Clients look for routes every 30 s; the fault may come at any moment of that.
            time.sleep(faults.dice.uniform(0, options.settle))
            busy = Busy()
            application.ask("mark")
            faults.strike(kind)
            time.sleep(options.settle)
            report = {"target": options.target, "alias": options.alias, "fault": kind, "client": line, "number": number, **application.ask("report"), "busy_cores": busy.cores()}
            print(json.dumps(report), flush=True)
            reports.append(report)
            faults.leader()
            faults.even()
        total = application.ask("stop")
        print(json.dumps({"fault": kind, "client": line, **total}), flush=True)
        return reports, total
    finally:
        application.process.kill()
        application.process.wait()


def row(kind, line, reports, total):
    def spread(key):
        values = [report[key] for report in reports]
        return f"{statistics.median(values):,.0f} ({min(values):,.0f} - {max(values):,.0f})"

    failed = sum(report["failed"] for report in reports)
    sends = sum(report["sends"] for report in reports)
    flying = f"{sum(r['in_flight_failed'] for r in reports)} of {sum(r['in_flight'] for r in reports)}"
    ends = " / ".join(str(total[key]) for key in ("lost", "stored_twice", "redelivered", "out_of_order"))
    return (
        f"| {kind} | {line} | {len(reports)} | {failed:,} of {sends:,} | {flying} | {spread('send_gap_ms')} | {spread('consume_gap_ms')} "
        f"| {spread('queue_gap_ms')} | {spread('keys_waiting')} | {ends} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default="kill-leader,stop-leader,kill-follower,rolling,kill-namesrv")
    parser.add_argument("--clients", default="4.9,5.5")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--settle", type=float, default=32, help="seconds after a fault before its report")
    parser.add_argument("--poll", type=int, help="milliseconds between the clients' looks for routes, instead of 30,000")
    parser.add_argument("--alias", action="store_true", help="groupAliasRoutes=true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more lines for the nodes' files")
    parser.add_argument("--target", choices=("rmq", "dledger"), default="rmq")
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    parser.add_argument("--base", type=int, default=23000, help="first of some 300 ports")
    options = parser.parse_args()
    if options.binary:
        Rmq.binary = os.path.abspath(options.binary)
    elif options.target == "rmq":
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--bin", "rmq"], cwd=ROOT, check=True)
    cache = subprocess.run([f"{ROOT}/scripts/clients.sh", "java"], check=True, capture_output=True, text=True).stdout.strip()
    work = tempfile.mkdtemp(prefix="rmq-failover-")
    print(f"seed {options.seed}, files in {work}", flush=True)
    rows = []
    kept = True
    try:
        for kind in options.faults.split(","):
            for line in options.clients.split(","):
                # Without warming up the first sends of a JVM are slow, but each run has the same start.
                more = "\n".join([*options.set, "groupAliasRoutes=true" if options.alias else "", ""])
                cluster = JavaDledger(options.base, work, cache) if options.target == "dledger" else RmqGroup(options.base, work, cache, more)
                try:
                    cluster.up()
                    cluster.create_topic(PLAIN)
                    cluster.create_topic(ORDERED)
                    faults = Faults(cluster, random.Random(f"{options.seed}{kind}{line}"), options.settle)
                    rows.append(row(kind, line, *one(kind, cluster, faults, line, options)))
                finally:
                    for process in cluster.processes.values():
                        process.send_signal(signal.SIGCONT)
                        process.kill()
                        process.wait()
                shutil.rmtree(cluster.dir)
        kept = False
    finally:
        if not kept:
            shutil.rmtree(work, ignore_errors=True)
    print("\n| fault | client | faults | failed sends | in flight, failed | send gap ms | consume gap ms | worst queue ms | keys > 1.5 s | lost / stored twice / delivered again / out of order |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
