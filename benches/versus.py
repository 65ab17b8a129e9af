#!/usr/bin/env python3
"""rmq beside Java DLedger 4.9.7 on this machine, in one run, taking turns.

    benches/versus.py [--rounds 3] [--seconds 16] [--only send,latency,failover,idle]

Both are three nodes and a name server on loopback with default settings (asynchronous flush, quorum
acknowledgement), loaded by the same unmodified Java clients: throughput by the benchmark producer of the
RocketMQ distribution (5.5.0), latency by benches/java/OpenLoop.java on client 4.9.8. Failover is timed
with plain requests to all three nodes in turn, from kill -9 of the leader to the first acknowledged send.
Prints a table of medians and ratios, and one JSON line a measurement to --json FILE.

Needs python3 and what scripts/clients.sh fetches. Machines differ and are noisy: believe ratios.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TICKS = os.sysconf("SC_CLK_TCK")
OPENS = [
    f"--add-{kind}=java.base/{package}=ALL-UNNAMED"
    for package in ("java.nio", "java.lang", "java.util", "sun.nio.ch", "jdk.internal.misc", "jdk.internal.ref")
    for kind in ("opens", "exports")
]


def move_to_own_network():
    """As root: this program and all that it starts from now on are alone on their loopback, where no port is
    taken and nobody else's name server answers."""
    clone_newnet = 0x40000000
    if os.geteuid() != 0:
        return
    if ctypes.CDLL(None, use_errno=True).unshare(clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class Cluster:
    """Three nodes and a name server; subclasses say how to start one."""

    def __init__(self, base, work, cache):
        self.base, self.cache = base, cache
        self.dir = os.path.join(work, self.name)
        self.namesrv = f"127.0.0.1:{base}"
        self.addresses = [f"127.0.0.1:{base + 102 + 100 * i}" for i in range(3)]
        self.raft = ";".join(f"n{i}-127.0.0.1:{base + 101 + 100 * i}" for i in range(3))
        self.processes = {}

    def spawn(self, key, command, env=None):
        log = open(os.path.join(self.dir, f"{key}.log"), "ab")
        # Linux shares the processor out by sessions: each node has its own, as if on its own machine.
        self.processes[key] = subprocess.Popen(
            [*self.within(key), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )

    def within(self, key):
        """The beginning of the command of a node or of the name server."""
        return []

    def write(self, name, text):
        path = os.path.join(self.dir, name)
        with open(path, "w") as f:
            f.write(text)
        return path

    def up(self, topics=("bench128", "bench1024", "failover")):
        os.makedirs(self.dir)
        self.start_namesrv(self.write("namesrv.conf", f"listenPort={self.base}\n"))
        for i in range(3):
            self.start_node(i)
        for topic in topics:
            self.create_topic(topic)

    def node_conf(self, i):
        host, port = self.addresses[i].rsplit(":", 1)
        return self.write(
            f"n{i}.conf",
            f"brokerClusterName=bench\nbrokerName=g0\nbrokerIP1={host}\nnamesrvAddr={self.namesrv}\nlistenPort={port}\n"
            f"storePathRootDir={self.dir}/n{i}\nstorePathCommitLog={self.dir}/n{i}/commitlog\nenableDLegerCommitLog=true\n"
            f"dLegerGroup=g0\ndLegerPeers={self.raft}\ndLegerSelfId=n{i}\n{self.more}",
        )

    def nodes(self):
        return [self.processes[f"n{i}"] for i in range(3)]

    def cpu(self):
        total = 0
        for process in self.nodes():
            with open(f"/proc/{process.pid}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def resident_mib(self):
        sizes = []
        for process in self.nodes():
            with open(f"/proc/{process.pid}/status") as f:
                sizes.append(int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) / 1024)
        return sizes

    def create_topic(self, topic):
        fields = {
            "topic": topic, "defaultTopic": "TBW102", "readQueueNums": "8", "writeQueueNums": "8", "perm": "6",
            "topicFilterType": "SINGLE_TAG", "topicSysFlag": "0", "order": "false",
        }
        end = time.time() + 120
        while time.time() < end:
            leader = self.leader()
            try:
                if leader is not None and rpc(self.addresses[leader], 17, fields, timeout=5)["code"] == 0:
                    if rpc(self.namesrv, 105, {"topic": topic})["code"] == 0:
                        return
            except OSError:
                pass
            time.sleep(0.2)
        raise SystemExit(f"{self.name}: no leader within 120 s, see {self.dir}")

    def leader(self):
        """The node that the name server shows as broker id 0."""
        try:
            body = rpc(self.namesrv, 106)["body"].decode()
            table = json.loads(re.sub(r"([{,])\s*(-?\d+)\s*:", r'\1"\2":', body))["brokerAddrTable"]
            return self.addresses.index(table["g0"]["brokerAddrs"]["0"])
        except (OSError, ValueError, KeyError):
            return None

    def down(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.dir)


class Rmq(Cluster):
    name, more = "rmq", ""
    binary = os.path.join(ROOT, "target/release/rmq")

    def start_namesrv(self, conf):
        self.spawn("namesrv", [self.binary, "namesrv", "-c", conf])

    def start_node(self, i):
        self.spawn(f"n{i}", [self.binary, "broker", "-c", self.node_conf(i)])


class JavaDledger(Cluster):
    # As in the distribution's own conf/dledger.
    name, line, more = "java-dledger-4.9.7", "java-4.9", "sendMessageThreadPoolNums=16\n"

    def java(self, key, heap, main, conf):
        home = os.path.join(self.dir, f"{key}-home")
        os.makedirs(os.path.join(home, "conf"), exist_ok=True)
        logback = os.path.join(self.cache, self.line, "logback.xml")
        for name in ("logback_broker.xml", "logback_namesrv.xml"):
            shutil.copy(logback, os.path.join(home, "conf", name))
        flags = ["-server", f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseG1GC", "-XX:MaxDirectMemorySize=2g", f"-Duser.home={home}"]
        self.spawn(key, ["java", *flags, *OPENS, "-cp", f"{self.cache}/{self.line}/lib/*", main, "-c", conf], {"ROCKETMQ_HOME": home})

    def start_namesrv(self, conf):
        self.java("namesrv", "256m", "org.apache.rocketmq.namesrv.NamesrvStartup", conf)

    def start_node(self, i):
        self.java(f"n{i}", "1g", "org.apache.rocketmq.broker.BrokerStartup", self.node_conf(i))


def rpc(address, code, fields=None, body=b"", timeout=2.0):
    """One request by a JSON header; the answer's header with its body."""
    header = {"code": code, "language": "JAVA", "version": 409, "opaque": 1, "flag": 0, "extFields": fields or {}}
    header = json.dumps(header).encode()
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout) as s:
        s.settimeout(timeout)
        s.sendall(struct.pack(">II", 4 + len(header) + len(body), len(header)) + header + body)

        def read(n):
            data = b""
            while len(data) < n:
                part = s.recv(n - len(data))
                if not part:
                    raise OSError("closed")
                data += part
            return data

        length, header_length = struct.unpack(">II", read(8))
        header_length &= 0xFFFFFF
        answer = json.loads(read(header_length))
        answer["body"] = read(length - 4 - header_length)
        return answer


def client(cluster, line, main, *arguments):
    lib = os.path.join(cluster.cache, line)
    logback = os.path.join(lib, "logback.xml")
    command = [
        "java", "-Xms512m", "-Xmx512m", "-XX:+UseG1GC", *OPENS, f"-Duser.home={cluster.dir}", f"-Dlogback.configurationFile={logback}",
        f"-Drmq.logback.configurationFile={logback}", "-cp", f"{cluster.dir}/classes:{lib}/lib/*", main, *map(str, arguments),
    ]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def send(cluster, size, seconds):
    """Sends a second over the last half of the run, and the brokers' CPU seconds for a million."""
    main = "org.apache.rocketmq.example.benchmark.Producer"
    producer = client(cluster, "java-5.5", main, "-n", cluster.namesrv, "-t", f"bench{size}", "-s", size, "-w", 64, "-ri", 1000)
    reports = []

    def read():
        for line in producer.stdout:
            found = re.search(r"Send TPS: (\d+)", line)
            if found:
                reports.append((time.time(), int(found.group(1))))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    time.sleep(seconds / 2)
    cpu, begun = cluster.cpu(), time.time()
    time.sleep(seconds / 2)
    cpu, ended = cluster.cpu() - cpu, time.time()
    producer.kill()
    producer.wait()
    reader.join(2)
    rates = [tps for at, tps in reports if begun < at <= ended]
    if not rates:
        raise SystemExit(f"{cluster.name}: the producer reported nothing, see {cluster.dir}")
    rate = statistics.mean(rates)
    return {"per_second": rate, "cpu_s_per_million": cpu / (rate * (ended - begun)) * 1e6}


def latency(cluster, seconds):
    sender = client(cluster, "java-4.9", "OpenLoop", cluster.namesrv, "bench1024", 1024, 1000, seconds // 2, seconds)
    out, _ = sender.communicate()
    return json.loads(out)


def failover(cluster):
    """Milliseconds from kill -9 of the leader to the first send that any node acknowledges."""
    leader = cluster.leader()
    process = cluster.processes[f"n{leader}"]
    process.kill()
    killed = time.time()
    process.wait()
    fields = {
        "a": "bench", "b": "failover", "c": "TBW102", "d": "8", "e": "0", "f": "0", "g": "0", "h": "0", "i": "",
        "j": "0", "k": "false", "m": "false",
    }
    others = [a for i, a in enumerate(cluster.addresses) if i != leader]
    elapsed = None
    while elapsed is None:
        for address in others:
            try:
                if rpc(address, 310, fields, b"x", timeout=0.5)["code"] == 0:
                    elapsed = (time.time() - killed) * 1000
                    break
            except OSError:
                pass
        if time.time() - killed > 120:
            raise SystemExit(f"{cluster.name}: no acknowledgement within 120 s, see {cluster.dir}")
        time.sleep(0.005)
    cluster.start_node(leader)
    time.sleep(10)
    return {"ms": elapsed}


def idle(cluster):
    time.sleep(15)
    before = cluster.cpu()
    time.sleep(10)
    return {"resident_mib": max(cluster.resident_mib()), "cpu_percent": (cluster.cpu() - before) * 10}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=16)
    parser.add_argument("--only", default="idle,send,latency,failover")
    parser.add_argument("--json")
    options = parser.parse_args()
    only = options.only.split(",")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--bin", "rmq"], cwd=ROOT, check=True)
    cache = subprocess.run([f"{ROOT}/scripts/clients.sh", "java"], check=True, capture_output=True, text=True).stdout.strip()
    work = tempfile.mkdtemp(prefix="rmq-versus-")
    move_to_own_network()
    results = {}

    def note(cluster, what, values):
        for key, value in values.items():
            if isinstance(value, (int, float)):
                results.setdefault(f"{what} {key}", {}).setdefault(cluster.name, []).append(value)
        line = json.dumps({"target": cluster.name, "what": what, **values})
        print(line, flush=True)
        if options.json:
            with open(options.json, "a") as f:
                f.write(line + "\n")

    try:
        for _ in range(options.rounds):
            # One after the other, never at once: two cores would measure their quarrel.
            for kind, base in ((Rmq, 21000), (JavaDledger, 22000)):
                cluster = kind(base, work, cache)
                try:
                    cluster.up()
                    os.makedirs(f"{cluster.dir}/classes")
                    jars = os.path.join(cache, "java-4.9/lib/*")
                    subprocess.run(["javac", "-nowarn", "-cp", jars, "-d", f"{cluster.dir}/classes", f"{ROOT}/benches/java/OpenLoop.java"], check=True)
                    if "idle" in only:
                        note(cluster, "idle", idle(cluster))
                    if "send" in only:
                        send(cluster, 1024, options.seconds)  # the JVM warms up; not counted
                        for size in (128, 1024):
                            note(cluster, f"send {size} B x 64", send(cluster, size, options.seconds))
                    if "latency" in only:
                        note(cluster, "1 KiB at 1000/s", latency(cluster, options.seconds))
                    if "failover" in only:
                        note(cluster, "failover", failover(cluster))
                finally:
                    cluster.down()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n| measurement (median of {options.rounds}) | {Rmq.name} | {JavaDledger.name} | ratio |\n|---|---|---|---|")
    for what, values in results.items():
        ours, theirs = (statistics.median(values.get(k.name, [float("nan")])) for k in (Rmq, JavaDledger))
        ratio = ours / theirs if theirs else float("nan")
        print(f"| {what} | {ours:,.2f} | {theirs:,.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
