"""Gives the users of a generated world what they were shown lately: 30 items each, as Shortlist keeps
them in Redis (src/store/list.rs: entries of a time, an id and the id's length, oldest first).
"""

import argparse
import random
import socket
import struct
import threading

SHOWN = 30
TOGETHER = 1000


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--time-ms", type=int, required=True, help="when the last item was shown")
    args = parser.parse_args()
    draw = random.Random(5)
    with socket.create_connection(("127.0.0.1", args.port)) as connection:
        answers = threading.Thread(target=lambda: drain(connection))
        answers.start()
        for first in range(1, args.users + 1, TOGETHER):
            batch = bytearray()
            for user in range(first, min(first + TOGETHER, args.users + 1)):
                name = b"u%07d" % user
                entries = bytearray()
                for at in range(SHOWN):
                    item = b"i%07d" % draw.randint(1, args.items)
                    entries += struct.pack("<q", args.time_ms - (SHOWN - at) * 1000) + item + struct.pack("<H", len(item))
                batch += command(b"SET", b"sl:shown:" + name, bytes(entries))
            connection.sendall(batch)
        connection.sendall(command(b"PING") + command(b"QUIT"))
        answers.join()


def drain(connection):
    last = b""
    while part := connection.recv(1 << 20):
        last = (last + part)[-64:]
        if b"-" in part[:1]:
            raise SystemExit(f"Redis: {part[:200]!r}")
    if not last.endswith(b"+PONG\r\n+OK\r\n"):
        raise SystemExit(f"Redis hung up: {last!r}")


if __name__ == "__main__":
    main()
