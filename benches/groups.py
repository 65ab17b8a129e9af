"""Groups whose nodes have a network of their own each: what `failover.py` breaks."""

import ctypes
import os
import subprocess

from cluster import JavaDledger, Rmq, is_leading

VIP = "10.79.0.100"


class Network:
    """A link with a namespace for each node; this program, name server and clients are at its other end."""

    CLONE_NEWNET = 0x40000000

    def __init__(self):
        self.holders = [self.namespace() for _ in range(4)]
        here = self.holders.pop()
        fd = os.open(f"/proc/{here.pid}/ns/net", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(fd, self.CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)
        here.kill()
        here.wait()
        # With an address of its own: by that of a port the packets of a node that is cut off would arrive.
        ip("link set lo up", "link add br0 address 02:00:00:00:00:fe type bridge", "addr add 10.79.0.254/24 dev br0", "link set br0 up")
        for i, holder in enumerate(self.holders):
            ip(f"link add port{i} type veth peer name eth0 netns {holder.pid}", f"link set port{i} master br0 up")
            for command in ("link set lo up", f"addr add 10.79.0.{i + 1}/24 dev eth0", "link set eth0 up"):
                subprocess.run([*self.within(i), "ip", *command.split()], check=True)

    @staticmethod
    def namespace():
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 86400"], stdout=subprocess.PIPE)
        holder.stdout.read(1)
        return holder

    def within(self, node):
        return ["nsenter", "--net", "--target", str(self.holders[node].pid), "--"]

    def cut(self, node):
        ip(f"link set port{node} nomaster")

    def mend(self, node):
        ip(f"link set port{node} master br0")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for holder in self.holders:
            holder.kill()
            holder.wait()


def ip(*commands):
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


class Placed:
    """A cluster whose nodes are in a network."""

    network = None

    def place(self, network):
        self.network = network
        if network:
            self.namesrv = f"10.79.0.254:{self.base}"
            self.addresses = [f"10.79.0.{i + 1}:10911" for i in range(3)]
            self.raft = ";".join(f"n{i}-10.79.0.{i + 1}:40911" for i in range(3))
        return self

    def within(self, key):
        return self.network.within(int(key[1:])) if self.network and key != "namesrv" else []

    def struck(self, node, leader):
        """Where clients find a node."""
        return self.addresses[node]


class RmqGroup(Placed, Rmq):
    KEYS = {
        "plain": "slaveReadEnable=true\n",
        "alias-1": "groupAliasRoutes=true\nslaveReadEnable=true\n",
        "alias": "groupAliasRoutes=true\ngroupAliasQueues=8\nslaveReadEnable=true\n",
        "both-1": f"groupAliasRoutes=true\nbrokerVip={VIP}/24@eth0\nslaveReadEnable=true\n",
        "lame-duck": "groupAliasRoutes=true\ngroupAliasQueues=8\nslaveReadEnable=true\nlameDuckMillis=35000\n",
        "avoid": "groupAliasRoutes=true\ngroupAliasQueues=8\nslaveReadEnable=true\n",
        "vip": f"brokerVip={VIP}/24@eth0\n",
        "transactions": f"groupAliasRoutes=true\ngroupAliasQueues=8\nbrokerVip={VIP}/24@eth0\nslaveReadEnable=true\n",
        "both": f"groupAliasRoutes=true\ngroupAliasQueues=8\nbrokerVip={VIP}/24@eth0\nslaveReadEnable=true\n",
    }

    def struck(self, node, leader):
        moving = "brokerVip" in self.more and node == leader
        return f"{VIP}:10911" if moving else self.addresses[node]

    def leader(self):
        return next((i for i, address in enumerate(self.addresses) if is_leading(address)), None)

    def transfer(self):
        command = [self.binary, "admin", "raftTransferLeader", "-n", self.namesrv]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Dledger(Placed, JavaDledger):
    pass


class Controller(Placed, JavaDledger):
    name, line = "java-controller-5.5.0", "java-5.5"

    def namesrv_conf(self):
        host, port = self.namesrv.split(":")
        return self.write(
            "namesrv.conf",
            f"listenPort={port}\nenableControllerInNamesrv=true\ncontrollerDLegerGroup=c0\ncontrollerDLegerSelfId=c0\n"
            f"controllerDLegerPeers=c0-{host}:{int(port) + 50}\ncontrollerStorePath={self.dir}/controller\n",
        )

    def node_conf(self, i):
        host, port = self.addresses[i].split(":")
        ns_host, ns_port = self.namesrv.split(":")
        return self.write(
            f"n{i}.conf",
            f"brokerClusterName=bench\nbrokerName=g0\nbrokerIP1={host}\nbrokerIP2={host}\nnamesrvAddr={self.namesrv}\nlistenPort={port}\n"
            f"storePathRootDir={self.dir}/n{i}\nstorePathCommitLog={self.dir}/n{i}/commitlog\nbrokerId=-1\nbrokerRole=SLAVE\n"
            f"enableControllerMode=true\ncontrollerAddr={ns_host}:{int(ns_port) + 50}\ninSyncReplicas=2\nminInSyncReplicas=2\n{self.more}",
        )
