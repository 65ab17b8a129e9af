#!/usr/bin/env python3
"""What stock clients see when something breaks under them, fault by fault.

    benches/failover.py --setup alias --faults kill-leader,rolling:2 --count 5 [--json results.jsonl]
    benches/failover.py --table benches/failover.jsonl       # all that docs/failover.md shows, some four hours
    benches/failover.py --report benches/failover.jsonl      # writes docs/failover.md and docs/failover.svg

Starts three nodes and a name server and, side by side, applications on the Java clients 4.9.8 and 5.5.0
(benches/java/Failover.java) and on the Go client v2 (benches/go/failover.go) in default settings, which
together send --rate messages a second and consume them, and beside that a fifth as many in order by 48 keys.
Applies each fault COUNT times at moments drawn from --seed. Prints one JSON line a fault and client, and a
table. As root every node has a network namespace of its own, which ends with this program; without, all is on
loopback, and what needs a network is left out.

Setups: plain (slaveReadEnable), alias (that and groupAliasRoutes, with all 8 queues of a topic under each
name), alias-1 (with one), lame-duck (alias, and lameDuckMillis=35000), avoid (alias, and sendLatencyFaultEnable=true
in the Java producers), vip (brokerVip alone, so that consumers read from the leader), both (alias and vip), both-1
(alias-1 and vip), transactions (both, with transactional messages of the Java producers), dledger (Java 4.9.7,
DLedger mode), controller (Java 5.5.0, controller mode, two in-sync replicas).

Faults: kill-leader (kill -9, started again after --down seconds), lose-leader (the same after 40 s, by when all clients have
looked for routes), stop-leader (SIGSTOP for 20 s), cut-leader (its
network is silent for 20 s), kill-follower, rolling (SIGTERM and start, one node after the other), transfer
(leadership handed over), kill-namesrv (kill -9, started again after 2 s), none. A number behind a fault goes
before --count, as in rolling:2.

--table measures what is missing in the file of the faults of PLAN, and then reports.
It can be stopped and started again at any time; what the file has of the same commit and options is not measured
again.

Needs python3 and what scripts/clients.sh fetches; ip, unshare and nsenter for the namespaces.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import failover_report
from cluster import ROOT, TICKS, Rmq, client_command, clients, work_dir
from groups import Controller, Dledger, Network, RmqGroup
from records import add, made_with, read, read_alike

# Seconds from the end of a fault to its report: consumers pause 3 s after an error, and stock clients look for
# routes every 30 s.
SETTLE = 5
JAVA_SETTLE = 40
# What the tables of docs/failover.md show, in the order of worth. One after the other: two groups and their applications
# at a time would leave two cores too little time for the sends that are due.
PLAN = [
    ("alias", "kill-leader:20"),
    ("both", "kill-leader:20"),
    ("alias", "transfer:20,rolling:20,kill-follower:20"),
    ("both", "stop-leader:20,cut-leader:20"),
    ("transactions", "kill-leader:20"),
    ("alias", "kill-namesrv:20"),
    ("lame-duck", "rolling:10"),
    ("both-1", "kill-leader:10,kill-follower:10"),
    ("dledger", "kill-leader:3,stop-leader:3"),
    ("controller", "kill-leader:3,stop-leader:3"),
    ("alias", "stop-leader:5,cut-leader:5"),
    ("vip", "kill-leader:5,stop-leader:5"),
]
# Faults begin when all clients have seen the routes after the one before: a node that is started again takes a
# moment until it is in them.
PLAN_OPTIONS = ["--down", "5", "--fresh", "34"]
# What a record says of how it was made.
SETTINGS = ("rate", "clients", "warm", "down", "settle", "fresh", "poll", "set", "loopback")
# The processes that measure.
MEASURING = []


class Application:
    """One of the applications."""

    @staticmethod
    def build(line, work, cache):
        if line == "go":
            command = ["go", "build", "-o", f"{work}/failover-go", f"{ROOT}/benches/go/failover.go"]
            subprocess.run(command, cwd=f"{ROOT}/tests/clients/go", check=True)
            return
        command = ["javac", "-nowarn", "-cp", f"{cache}/java-{line}/lib/*", "-d", f"{work}/classes-{line}", f"{ROOT}/benches/java/Failover.java"]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)

    def __init__(self, cluster, line, work, rate, more):
        arguments = [cluster.namesrv, f"plain_{line.replace('.', '')}", f"ordered_{line.replace('.', '')}", str(rate)]
        if line == "go":
            command = [f"{work}/failover-go", *arguments]
        else:
            # Without its file of counters in /tmp, which has it wait for the disk.
            flags = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", f"-Xlog:gc:{cluster.dir}/gc-{line}.log"]
            command = client_command(cluster, f"java-{line}", flags, f"{work}/classes-{line}", "Failover", *arguments, *more)
        self.log = os.path.join(cluster.dir, f"application-{line}.log")
        log = open(self.log, "wb")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1, start_new_session=True)

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the application has ended, see {self.log}")
        return json.loads(line)

    def ask(self, word):
        self.process.stdin.write(word + "\n")


class Faults:
    """`struck` is told by each fault of a node when it has struck, which is not at once: the kernel takes milliseconds to
    end a process, and its connections take requests until they are reset."""

    def __init__(self, cluster, dice, down, struck):
        self.cluster, self.dice, self.down, self.struck = cluster, dice, down, struck

    def even(self):
        """Waits until all nodes have the same end."""

        def near():
            ends = [self.cluster.log_end(i) for i in range(3)]
            return None not in ends and max(ends) - min(ends) < 1 << 20 or None

        self.cluster.until("even ends of the nodes' logs", 90, near)

    def target(self, kind, leader):
        """The node that is struck, if it is one."""
        if kind.endswith("-leader"):
            return leader
        return self.dice.choice([i for i in range(3) if i != leader]) if kind == "kill-follower" else None

    def strike(self, kind, target):
        getattr(self, kind.replace("-", "_"))(target)

    def none(self, _):
        time.sleep(10)

    def kill_leader(self, node, down=None):
        self.cluster.kill(f"n{node}")
        self.struck()
        time.sleep(down or self.down)
        self.cluster.start_node(node)

    kill_follower = kill_leader

    def lose_leader(self, node):
        self.kill_leader(node, 40)

    def stop_leader(self, node):
        process = self.cluster.processes[f"n{node}"]
        process.send_signal(signal.SIGSTOP)
        self.struck()
        time.sleep(20)
        process.send_signal(signal.SIGCONT)

    def cut_leader(self, node):
        self.cluster.network.cut(node)
        self.struck()
        time.sleep(20)
        self.cluster.network.mend(node)

    def rolling(self, _):
        for node in self.dice.sample(range(3), 3):
            process = self.cluster.processes[f"n{node}"]
            process.terminate()
            process.wait()
            self.cluster.start_node(node)
            self.even()
            time.sleep(2)

    def transfer(self, _):
        self.cluster.transfer()

    def kill_namesrv(self, _):
        self.cluster.kill("namesrv")
        time.sleep(2)
        self.cluster.start_namesrv()


class Busy:
    """How many cores the machine had busy, and how many would have been, had there been enough."""

    def __init__(self):
        self.begun, self.used = time.time(), self.now()

    @staticmethod
    def now():
        with open("/proc/stat") as f:
            user, nice, system, _, _, irq, soft, *_ = map(int, f.readline().split()[1:])
        return (user + nice + system + irq + soft) / TICKS

    def cores(self):
        return round((self.now() - self.used) / (time.time() - self.begun), 1)


def strike_all(kinds, cluster, work, options, note):
    """Applies each fault COUNT times to all clients at once."""
    dice = random.Random(f"{options.seed}{options.setup}")
    java = options.setup in ("dledger", "controller")
    lines = options.clients.split(",")
    more = [f"poll={options.poll}"] if options.poll else []
    if options.setup == "avoid":
        more.append("avoid=true")
    if options.setup == "transactions":
        more.append("transactions=true")
    applications = {}
    try:
        for line in lines:
            for topic in ("plain", "ordered"):
                cluster.create_topic(f"{topic}_{line.replace('.', '')}")
        for line in lines:
            applications[line] = Application(cluster, line, work, options.rate // len(lines), more)
            # One after the other, for a start is what a machine is slowest at.
            applications[line].read()

        def ask(word):
            for application in applications.values():
                application.ask(word)
            return {line: application.read() for line, application in applications.items()}

        faults = Faults(cluster, dice, options.down, lambda: ask(f"struck {time.time_ns()}"))
        # Consumers find their queues, and the JVMs get warm.
        time.sleep(options.warm)
        settled = 0.0
        for kind, number in [(kind, first + n) for kind, count, first in kinds for n in range(count)]:
            time.sleep(max(0, settled - time.time()) + dice.uniform(0, 3))
            busy = Busy()
            leader = cluster.leading()
            target = faults.target(kind, leader)
            ask("mark" if target is None else f"mark {cluster.struck(target, leader)}")
            faults.strike(kind, target)
            settled = time.time() + options.fresh
            time.sleep(options.settle or (JAVA_SETTLE if java else SETTLE))
            busy_cores, load = busy.cores(), round(os.getloadavg()[0], 1)
            for line, report in ask("report").items():
                seen = {"fault": kind, "client": line, "number": number, "leader": leader, **report}
                note({"setup": options.setup, **seen, "busy_cores": busy_cores, "load": load})
            cluster.leading()
            faults.even()
        for line, total in ask("stop").items():
            note({"setup": options.setup, "client": line, "total": total})
    finally:
        for application in applications.values():
            application.process.kill()
            application.process.wait()


def made_by(options):
    return made_with(Rmq.binary, {name: getattr(options, name) for name in SETTINGS})


def run(options):
    """Measures what the options say; the records."""
    if options.binary or options.setup in RmqGroup.KEYS:
        Rmq.choose(options.binary)
    made, records = made_by(options), []
    cache = clients("all")
    network = Network() if os.geteuid() == 0 and not options.loopback else None
    kinds = []
    for item in options.faults.split(","):
        kind, count, first, *_ = (*item.split(":"), "", "")
        kinds.append((kind, int(count or options.count), int(first or 0)))
    if not network and ("brokerVip" in RmqGroup.KEYS.get(options.setup, "") or "cut-leader" in options.faults):
        raise SystemExit("brokerVip and cut-leader need network namespaces, and these need root")
    with network or nullcontext(), work_dir("failover") as work:
        print(f"seed {options.seed}, files in {work}", flush=True)
        for line in options.clients.split(","):
            Application.build(line, work, cache)
        with {"dledger": Dledger, "controller": Controller}.get(options.setup, RmqGroup)(options.base, work, cache) as cluster:
            cluster.more = "\n".join([RmqGroup.KEYS.get(options.setup, cluster.more), *options.set, ""])
            cluster.place(network).up([])
            strike_all(kinds, cluster, work, options, lambda record: records.append(add({**record, **made}, options.json)))
    return records


def measure_table(path, records):
    """Measures what the file lacks of [`PLAN`]."""
    for setup, faults in PLAN:
        done = {}
        for record in records:
            if record["setup"] == setup and "fault" in record:
                done[record["fault"]] = max(done.get(record["fault"], 0), record["number"] + 1)
        wanted = [item.split(":") for item in faults.split(",")]
        missing = [(kind, done.get(kind, 0), int(count)) for kind, count in wanted]
        missing = [f"{kind}:{count - have}:{have}" for kind, have, count in missing if have < count]
        if missing:
            command = [sys.executable, __file__, "--setup", setup, "--faults", ",".join(missing), "--json", path, *PLAN_OPTIONS]
            # A process of its own, for the network namespaces that end with it.
            process = subprocess.Popen([*command, "--binary", Rmq.binary])
            MEASURING.append(process)
            if process.wait() != 0:
                raise SystemExit(f"{setup} {','.join(missing)}: not measured to the end")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=(*RmqGroup.KEYS, "dledger", "controller"), default="alias")
    parser.add_argument("--faults", default="kill-leader,stop-leader,kill-follower,rolling,transfer,kill-namesrv")
    parser.add_argument("--clients", default="4.9,5.5,go")
    parser.add_argument("--rate", type=int, default=1000, help="sends a second of all clients together")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--warm", type=float, default=25, help="seconds from the start of the clients to the first fault")
    parser.add_argument("--down", type=float, default=10, help="seconds until a killed node is started again")
    parser.add_argument("--settle", type=float, help="seconds from the end of a fault to its report")
    parser.add_argument("--fresh", type=float, default=0, help="least seconds from the end of a fault to the next, 31 for new routes")
    parser.add_argument("--poll", type=int, help="milliseconds between the Java clients' looks for routes, instead of 30,000")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more lines for the nodes' files")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces")
    parser.add_argument("--binary", help="the rmq executable; built in release mode by default")
    parser.add_argument("--base", type=int, default=23000, help="first of some 300 ports")
    parser.add_argument("--json", help="a file to add the JSON lines to")
    parser.add_argument("--table", metavar="FILE", help="measure what is missing there for the documents, and make them")
    parser.add_argument("--beside", metavar="WORDS", help="what ran at idle priority meanwhile, for the report")
    parser.add_argument("--report", nargs="+", metavar="FILE", help="measure nothing, put tables and picture of these files into docs")
    options = parser.parse_args()

    def stop(*_):
        for process in MEASURING:
            process.terminate()
        exit("stopped")

    # The end of this program is that of all it started.
    signal.signal(signal.SIGTERM, stop)
    if options.table:
        Rmq.choose(options.binary)
        made = made_by(parser.parse_args(PLAN_OPTIONS))
        measure_table(options.table, read_alike(options.table, made))
        failover_report.publish(read_alike(options.table, made), options.beside)
    elif options.report:
        failover_report.publish(read(*options.report), options.beside)
    else:
        print("\n".join(["", *failover_report.table(run(options))]))


if __name__ == "__main__":
    main()
