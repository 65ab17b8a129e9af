"""Clusters on this machine for the other programs here: rmq, the Java systems and NATS, each started from scratch."""

import ctypes
import json
import os
import re
import shutil
import socket
import struct
import subprocess
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
    """Nodes, three unless a subclass says otherwise, and a name server; subclasses say how to start one. `extra` are
    lines for the nodes' files."""

    count = 3
    speaks_rocketmq = True

    def __init__(self, base, work, cache, extra=""):
        self.base, self.cache, self.extra = base, cache, extra
        self.dir = os.path.join(work, self.name)
        self.namesrv = f"127.0.0.1:{base}"
        self.addresses = [f"127.0.0.1:{base + 102 + 100 * i}" for i in range(self.count)]
        self.raft = ";".join(f"n{i}-127.0.0.1:{base + 101 + 100 * i}" for i in range(self.count))
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
        self.topic = next(iter(topics), None)
        self.start_namesrv(self.write("namesrv.conf", f"listenPort={self.base}\n"))
        for i in range(self.count):
            self.start_node(i)
        for topic in topics:
            self.create_topic(topic)

    def node_conf(self, i):
        host, port = self.addresses[i].rsplit(":", 1)
        return self.write(
            f"n{i}.conf",
            f"brokerClusterName=bench\nbrokerName=g0\nbrokerIP1={host}\nnamesrvAddr={self.namesrv}\nlistenPort={port}\n"
            f"storePathRootDir={self.dir}/n{i}\nstorePathCommitLog={self.dir}/n{i}/commitlog\nenableDLegerCommitLog=true\n"
            f"dLegerGroup=g0\ndLegerPeers={self.raft}\ndLegerSelfId=n{i}\n{self.more}{self.extra}",
        )

    def nodes(self):
        return [self.processes[f"n{i}"] for i in range(self.count)]

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

    def log_end(self, i):
        """Where the commit log of a node ends; `None` while it does not say."""
        try:
            return int(json.loads(rpc(self.addresses[i], 28)["body"])["table"]["commitLogMaxOffset"])
        except (OSError, ValueError, KeyError):
            return None

    def kill(self, i):
        """kill -9, and when that was."""
        process = self.processes[f"n{i}"]
        process.kill()
        killed = time.time()
        process.wait()
        return killed

    def acknowledged(self, nodes=None, limit=120):
        """When any of these nodes first acknowledges a send from now on."""
        fields = {
            "a": "bench", "b": self.topic, "c": "TBW102", "d": "8", "e": "0", "f": "0", "g": "0", "h": "0", "i": "",
            "j": "0", "k": "false", "m": "false",
        }
        end = time.time() + limit
        while time.time() < end:
            for i in nodes or range(self.count):
                try:
                    if rpc(self.addresses[i], 310, fields, b"x", timeout=0.5)["code"] == 0:
                        return time.time()
                except OSError:
                    pass
            time.sleep(0.005)
        raise SystemExit(f"{self.name}: no acknowledgement within {limit} s, see {self.dir}")

    def messages(self, topic):
        """How many messages the leader has of a topic of eight queues."""
        leader = self.addresses[self.leader()]
        ends = (rpc(leader, 30, {"topic": topic, "queueId": str(queue)}) for queue in range(8))
        return sum(int(end["extFields"]["offset"]) for end in ends)

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


class RmqAlone(Rmq):
    """A group of one."""

    name, count = "rmq-alone", 1


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


class JavaPair(JavaDledger):
    """A master that answers when its slave has the message too. Two nodes, where the others have three."""

    name, count, more = "java-sync-master-4.9.7", 2, ""

    def node_conf(self, i):
        port = self.addresses[i].rsplit(":", 1)[1]
        return self.write(
            f"n{i}.conf",
            f"brokerClusterName=bench\nbrokerName=g0\nbrokerId={i}\nbrokerRole={('SYNC_MASTER', 'SLAVE')[i]}\n"
            f"brokerIP1=127.0.0.1\nbrokerIP2=127.0.0.1\nnamesrvAddr={self.namesrv}\nlistenPort={port}\n"
            f"storePathRootDir={self.dir}/n{i}\nstorePathCommitLog={self.dir}/n{i}/commitlog\n{self.extra}",
        )


class Nats(Cluster):
    """A JetStream cluster; its stream has three replicas, in files, and is made by the generator of `benches/nats`."""

    name, speaks_rocketmq = "nats-r3-2.15.2", False

    def up(self, topics=()):
        os.makedirs(self.dir)
        for i in range(self.count):
            self.start_node(i)
        self.info()

    def start_node(self, i):
        routes = ", ".join(f'"nats://127.0.0.1:{self.base + 101 + 100 * j}"' for j in range(self.count))
        conf = self.write(
            f"n{i}.conf",
            f'server_name: n{i}\nlisten: "{self.addresses[i]}"\njetstream {{ store_dir: "{self.dir}/n{i}", max_file: 60GB }}\n'
            f'cluster {{ name: bench, listen: "127.0.0.1:{self.base + 101 + 100 * i}", routes: [{routes}] }}\n',
        )
        self.spawn(f"n{i}", [f"{self.cache}/nats/nats-server", "-c", conf])

    def generator(self, *arguments):
        urls = ",".join(f"nats://{address}" for address in self.addresses)
        command = [f"{self.cache}/nats/natsgen", urls, *map(str, arguments)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def info(self):
        return json.loads(self.generator("info").communicate(timeout=120)[0])

    def leader(self):
        return int(self.info()["leader"][1:])

    def messages(self, topic):
        return self.info()["messages"]

    def acknowledged(self, nodes=None, limit=120):
        probe = self.generator("probe")
        try:
            return int(probe.stdout.readline()) / 1000
        finally:
            probe.kill()
            probe.wait()


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
