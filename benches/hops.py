#!/usr/bin/env python3
"""What a request and its answer take on this machine if nothing is done on the way.

    benches/hops.py [--rate 1000] [--size 1024] [--seconds 10]

Three processes hand a message on over loopback as a group does with a send: from the client to the leader, on to a follower,
and back. Nobody decodes, writes or syncs anything; what is left are four wake-ups, one after the other. Prints the latency,
counted from the due time, as `rmq bench produce -r` does: what there is left for a group to gain in the same minutes.
"""

import argparse
import os
import socket
import time


def receive(connection, size):
    view = memoryview(bytearray(size))
    while view:
        count = connection.recv_into(view)
        if not count:
            raise SystemExit(0)
        view = view[count:]


def linked():
    """Two ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    message, answer = bytes(options.size), bytes(100)
    client, of_client = linked()
    leader, follower = linked()

    def follow():
        receive(follower, options.size)
        follower.sendall(answer)

    def lead():
        receive(of_client, options.size)
        leader.sendall(message)
        receive(leader, len(answer))
        of_client.sendall(answer)

    # What others have open is closed, so that all end with the client.
    for work, foreign in ((follow, (client, of_client, leader)), (lead, (client, follower))):
        if os.fork() == 0:
            for end in foreign:
                end.close()
            while True:
                work()
    for end in (of_client, leader, follower):
        end.close()
    period, took = 1 / options.rate, []
    due = time.perf_counter()
    for _ in range(options.rate * options.seconds):
        due += period
        time.sleep(max(0, due - time.perf_counter()))
        client.sendall(message)
        receive(client, len(answer))
        took.append((time.perf_counter() - due) * 1000)
    took.sort()
    at = {share: took[int(len(took) * share)] for share in (0.5, 0.99, 0.999)}
    print(f"median {at[0.5]:.3f} ms, 99 % {at[0.99]:.3f}, 99.9 % {at[0.999]:.3f}")


if __name__ == "__main__":
    main()
