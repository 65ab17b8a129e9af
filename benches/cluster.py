"""Clusters on this machine for the other programs here: rmq, the Java systems and NATS, each started from scratch."""

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

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


@contextlib.contextmanager
def work_dir(name):
    """A directory for a run. It stays if the run fails, for that is when its logs are wanted."""
    work = tempfile.mkdtemp(prefix=f"rmq-{name}-")
    try:
        yield work
    except BaseException:
        print(f"kept: {work}", file=sys.stderr)
        raise
    shutil.rmtree(work)


def clients(side):
    """Fetches what the clients of a side need; where that is."""
    fetched = subprocess.run([f"{ROOT}/scripts/clients.sh", side], check=True, stdout=subprocess.PIPE, text=True)
    return fetched.stdout.strip()


def client_command(cluster, line, flags, classes, main, *arguments):
    """Of a Java client program."""
    lib = os.path.join(cluster.cache, line)
    logback = os.path.join(lib, "logback.xml")
    return [
        "java", *flags, *OPENS, f"-Duser.home={cluster.dir}", f"-Dlogback.configurationFile={logback}",
        f"-Drmq.logback.configurationFile={logback}", "-cp", f"{classes}:{lib}/lib/*", main, *map(str, arguments),
    ]


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Cluster:
    """Nodes, three unless a subclass says otherwise, and a name server; subclasses say how to start one. `extra` are
    lines for the nodes' files. Its end is that of its processes, and of its files if nothing has failed."""

    count = 3
    speaks_rocketmq = True

    def __init__(self, base, work, cache, extra=""):
        self.base, self.cache, self.extra = base, cache, extra
        self.dir = os.path.join(work, self.name)
        self.namesrv = f"127.0.0.1:{base}"
        self.addresses = [f"127.0.0.1:{base + 102 + 100 * i}" for i in range(self.count)]
        self.raft = ";".join(f"n{i}-127.0.0.1:{base + 101 + 100 * i}" for i in range(self.count))
        self.processes = {}

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()
        if not failure:
            shutil.rmtree(self.dir)

    def until(self, what, limit, attempt, pause=0.1):
        """What `attempt` returns, as soon as that is something. A node that does not answer yet is asked again."""
        end = time.time() + limit
        while time.time() < end:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if (found := attempt()) is not None:
                    return found
            time.sleep(pause)
        raise SystemExit(f"{self.name}: no {what} within {limit} s, see {self.dir}")

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
        self.start_namesrv()
        for i in range(self.count):
            self.start_node(i)
        for topic in topics:
            self.create_topic(topic)

    def namesrv_conf(self):
        return self.write("namesrv.conf", f"listenPort={self.base}\n")

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
        return sum(cpu_seconds(process.pid) for process in self.nodes())

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

        def created():
            leader = self.leader()
            if leader is not None and rpc(self.addresses[leader], 17, fields, timeout=5)["code"] == 0:
                return rpc(self.namesrv, 105, {"topic": topic})["code"] == 0 or None

        self.until("leader", 120, created)

    def create_topics(self, names, queues):
        """In lists, each of which waits once for the name servers."""
        for at in range(0, len(names), 1000):
            topics = [
                {"topicName": name, "readQueueNums": queues, "writeQueueNums": queues, "perm": 6, "order": False, "topicSysFlag": 0}
                for name in names[at : at + 1000]
            ]
            body = json.dumps({"topicConfigList": topics}).encode()
            answer = rpc(self.addresses[self.leading()], 18, body=body, timeout=30)
            if answer["code"] != 0:
                raise SystemExit(f"{self.name}: topics are not created: {answer.get('remark')}")

    def leader(self):
        return self.shown()

    def shown(self):
        """The node that the name server shows as broker id 0."""
        try:
            body = rpc(self.namesrv, 106)["body"].decode()
            table = json.loads(re.sub(r"([{,])\s*(-?\d+)\s*:", r'\1"\2":', body))["brokerAddrTable"]
            return self.addresses.index(table["g0"]["brokerAddrs"]["0"])
        except (OSError, ValueError, KeyError):
            return None

    def leading(self):
        """The leader, once there is one."""
        return self.until("leader", 60, self.leader)

    def log_end(self, i):
        """Where the commit log of a node ends; `None` while it does not say."""
        try:
            return int(json.loads(rpc(self.addresses[i], 28)["body"])["table"]["commitLogMaxOffset"])
        except (OSError, ValueError, KeyError):
            return None

    def kill(self, key):
        """kill -9, and when that was."""
        process = self.processes[key]
        process.kill()
        killed = time.time()
        process.wait()
        return killed

    @contextlib.contextmanager
    def probe(self):
        """A plain client, and its start. What it yields waits for the first acknowledgement of a send that was begun after
        a time, and says when that was."""

        def first():
            fields = {
                "a": "bench", "b": self.topic, "c": "TBW102", "d": "8", "e": "0", "f": "0", "g": "0", "h": "0", "i": "",
                "j": "0", "k": "false", "m": "false",
            }
            for address in self.addresses:
                with contextlib.suppress(OSError):
                    if rpc(address, 310, fields, b"x", timeout=0.5)["code"] == 0:
                        return time.time()

        yield lambda _: self.until("acknowledgement", 120, first, pause=0.005)

    def messages(self, topic):
        """How many messages the leader has of a topic."""

        def stored():
            answer = rpc(self.addresses[self.leading()], 202, {"topic": topic}, timeout=10)
            ends = re.findall(rb'"maxOffset":(\d+)', answer["body"])
            return sum(map(int, ends)) if answer["code"] == 0 else None

        return self.until(f"answer about {topic}", 60, stored)

    def produce(self, *options, program=None, name="bench"):
        return self.bench("produce", *options, program=program, name=name)

    def pids(self):
        """The nodes, as `rmq bench` is told of them."""
        return [part for process in self.nodes() for part in ("--pid", process.pid)]

    def bench(self, mode, *options, program=None, name="bench"):
        """What `rmq bench` says once it has ended. Two at a time need names of their own."""
        result = os.path.join(self.dir, f"{name}.json")
        with contextlib.suppress(FileNotFoundError):
            os.remove(result)
        command = [program or Rmq.binary, "bench", mode, "-q", "-n", self.namesrv, "--json", result, *options]
        # Sends that failed make it fail, and are told all the same.
        subprocess.run([str(part) for part in command], check=False, stdout=subprocess.DEVNULL)
        if not os.path.exists(result):
            raise SystemExit(f"{self.name}: rmq bench has no result, see {self.dir}")
        with open(result) as f:
            return json.load(f)


class Rmq(Cluster):
    name, more = "rmq", ""
    binary = os.path.join(ROOT, "target/release/rmq")

    @staticmethod
    def choose(binary):
        """Has all run this executable, or one that is built now."""
        if binary:
            Rmq.binary = os.path.abspath(binary)
        else:
            subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--bin", "rmq"], cwd=ROOT, check=True)

    def start_namesrv(self):
        self.spawn("namesrv", [self.binary, "namesrv", "-c", self.namesrv_conf()])

    def start_node(self, i):
        self.spawn(f"n{i}", [self.binary, "broker", "-c", self.node_conf(i)])

    def leader(self):
        """Not a follower that is shown in the leader's place while there is none."""
        shown = self.shown()
        if shown is None or not is_leading(self.addresses[shown]):
            return None
        return shown


def is_leading(address):
    """Whether a node of rmq says that it leads."""
    try:
        with urllib.request.urlopen(f"http://{address}/leader", timeout=0.5):
            return True
    except OSError:
        return False


class RmqAlone(Rmq):
    """A group of one."""

    name, count = "rmq-alone", 1


class JavaDledger(Cluster):
    # As in the distribution's own conf/dledger. More memory than the fault suite gives (jepsen/src/cluster/target.rs),
    # which starts more at a time and compares no speed.
    name, line, more = "java-dledger-4.9.7", "java-4.9", "sendMessageThreadPoolNums=16\n"

    def java(self, key, heap, main, conf):
        home = os.path.join(self.dir, f"{key}-home")
        os.makedirs(os.path.join(home, "conf"), exist_ok=True)
        logback = os.path.join(self.cache, self.line, "logback.xml")
        for name in ("logback_broker.xml", "logback_namesrv.xml"):
            shutil.copy(logback, os.path.join(home, "conf", name))
        flags = ["-server", f"-Xms{heap}", f"-Xmx{heap}", "-XX:+UseG1GC", "-XX:MaxDirectMemorySize=2g", f"-Duser.home={home}"]
        self.spawn(key, ["java", *flags, *OPENS, "-cp", f"{self.cache}/{self.line}/lib/*", main, "-c", conf], {"ROCKETMQ_HOME": home})

    def start_namesrv(self):
        self.java("namesrv", "256m", "org.apache.rocketmq.namesrv.NamesrvStartup", self.namesrv_conf())

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

    def shown(self):
        return int(self.info()["leader"][1:])

    def messages(self, topic):
        return self.info()["messages"]

    @contextlib.contextmanager
    def probe(self):
        generator, sends = self.generator("probe"), []

        def read():
            for line in generator.stdout:
                sends.append([int(ms) / 1000 for ms in line.split()])

        def first(since):
            return next((acknowledged for begun, acknowledged in sends if begun > since), None)

        threading.Thread(target=read, daemon=True).start()
        try:
            yield lambda since: self.until("acknowledgement", 120, lambda: first(since))
        finally:
            generator.kill()
            generator.wait()


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
