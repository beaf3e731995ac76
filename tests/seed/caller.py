"""A caller written from the founding protocol document alone: plain sockets and json, nothing of p2ptunnel.

    python caller.py SERVER_HOST SERVER_PORT OWN_TAG WANTED_TAG TEXT

Punches, sends TEXT over the TCP connection, prints what comes back, exits 0.
"""

import json
import random
import socket
import sys
import time

TRIES = 50
WAIT = 0.2


def ask(udp, request, destination, wanted):
    """Repeat a request until an answer to it arrives; other messages that come meanwhile are returned as well."""
    seen = []
    for _ in range(TRIES):
        udp.sendto(json.dumps(request).encode(), destination)
        deadline = time.monotonic() + WAIT
        while (left := deadline - time.monotonic()) > 0:
            udp.settimeout(left)
            try:
                message, source = receive(udp)
            except TimeoutError:
                break
            if wanted(message):
                return message, seen
            seen.append((message, source))
    raise SystemExit(f"no answer to {request}")


def receive(udp):
    data, source = udp.recvfrom(2048)
    return json.loads(data), source


def main():
    server = (sys.argv[1], int(sys.argv[2]))
    own_tag, wanted_tag, text = sys.argv[3:6]

    # one UDP socket for everything: behind a router nobody knows which port the world sees
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", 0))
    port = udp.getsockname()[1]

    # t=4: I want the callee
    mid = random.getrandbits(48)
    request = {"t": 4, "mid": mid, "ltag": own_tag, "extra": {"rtag": wanted_tag}}
    answer, seen = ask(udp, request, server, lambda m: m["t"] == -4 and m["mid"] == mid)
    if answer["code"] != 200:
        raise SystemExit(f"refused: {answer['code']} {answer['em']}")
    token = answer["extra"]["token"]

    # t=11: the callee's public address; it may have come before -4
    result = next((m for m, _ in seen if m["t"] == 11), None)
    udp.settimeout(10)
    while result is None:
        message, _ = receive(udp)
        if message["t"] == 11 and message["token"] == token:
            result = message
    udp.sendto(json.dumps({"t": -11, "mid": result["mid"], "token": token}).encode(), server)
    if result["code"] != 200:
        raise SystemExit(f"refused: {result['code']} {result['em']}")
    callee = (result["extra"]["host"], result["extra"]["port"])

    # t=31: try the hole
    mid = random.getrandbits(48)
    ask(udp, {"t": 31, "mid": mid, "token": token}, callee, lambda m: m["t"] == -31 and m["mid"] == mid)

    # t=32: open TCP for me
    mid = random.getrandbits(48)
    request = {"t": 32, "mid": mid, "token": token, "extra": {"op": 1}}
    answer, _ = ask(udp, request, callee, lambda m: m["t"] == -32 and m["mid"] == mid)
    if answer["code"] != 200 or not answer["extra"]["conkey"]:
        raise SystemExit(f"no TCP: {answer}")

    # TCP from the same local port to the callee's port
    connection = connect(port, callee)
    connection.sendall(text.encode())
    connection.shutdown(socket.SHUT_WR)
    back = b""
    while chunk := connection.recv(4096):
        back += chunk
    print(back.decode())


def connect(port, callee):
    for _ in range(TRIES):
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("0.0.0.0", port))
        tcp.settimeout(3)
        try:
            tcp.connect(callee)
        except OSError:
            tcp.close()
            time.sleep(WAIT)
        else:
            tcp.settimeout(10)
            return tcp
    raise SystemExit("no TCP connection")


if __name__ == "__main__":
    main()
