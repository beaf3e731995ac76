"""A callee written from the founding protocol document alone: plain sockets and json, nothing of p2ptunnel.

    python callee.py SERVER_HOST SERVER_PORT OWN_TAG

The document says nothing of how a callee becomes known; the one thing taken from elsewhere is the bare t=1.  Prints `ready`
when the server knows it, lets one caller in, sends its bytes back, exits 0.
"""

import json
import random
import secrets
import socket
import sys
import time

WAIT = 0.2
TRIES = 50


def main():
    server = (sys.argv[1], int(sys.argv[2]))
    own_tag = sys.argv[3]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", 0))
    port = udp.getsockname()[1]
    register(udp, server, own_tag)
    print("ready", flush=True)

    tcp = None
    connection = None
    udp.settimeout(WAIT)
    deadline = time.monotonic() + 30
    while connection is None:
        if time.monotonic() > deadline:
            raise SystemExit("nobody called")
        if tcp is not None:
            connection = accept(tcp)
        try:
            data, source = udp.recvfrom(2048)
        except TimeoutError:
            continue
        message = json.loads(data)
        if message["t"] == 10:
            # open our router for the caller, then say which port we open
            caller = (message["extra"]["host"], message["extra"]["port"])
            udp.sendto(json.dumps({"t": 30}).encode(), caller)
            answer = {"t": -10, "mid": message["mid"], "token": message["extra"]["token"], "code": 200, "em": ""}
            udp.sendto(json.dumps({**answer, "extra": {"port": port}}).encode(), server)
        elif message["t"] == 31:
            # start the TCP server on the port, then tell the caller that we are ready
            tcp = tcp or listen(port)
            udp.sendto(json.dumps({"t": -31, "mid": message["mid"], "token": message["token"]}).encode(), source)
        elif message["t"] == 32:
            answer = {"t": -32, "mid": message["mid"], "token": message["token"], "code": 200, "em": ""}
            udp.sendto(json.dumps({**answer, "extra": {"conkey": secrets.token_hex(8)}}).encode(), source)

    connection.settimeout(10)
    while chunk := connection.recv(4096):
        connection.sendall(chunk)
    connection.close()


def register(udp, server, own_tag):
    request = {"t": 1, "mid": random.getrandbits(48), "ltag": own_tag}
    udp.settimeout(WAIT)
    for _ in range(TRIES):
        udp.sendto(json.dumps(request).encode(), server)
        try:
            answer = json.loads(udp.recvfrom(2048)[0])
        except TimeoutError:
            continue
        if answer["t"] == -1 and answer["code"] == 200:
            return
        raise SystemExit(f"not registered: {answer}")
    raise SystemExit("no server")


def listen(port):
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("0.0.0.0", port))
    tcp.listen()
    tcp.setblocking(False)
    return tcp


def accept(tcp):
    try:
        return tcp.accept()[0]
    except BlockingIOError:
        return None


if __name__ == "__main__":
    main()
