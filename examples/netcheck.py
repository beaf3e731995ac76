"""What this machine's network does to connections, asked of a rendezvous server.

    python examples/netcheck.py [HOST:PORT]

Without a server, one is started on loopback, where there is no NAT to find.
"""

import asyncio
import contextlib
import sys
import tempfile

from p2ptunnel import NetReport, Peer, Rendezvous


def show(report: NetReport) -> None:
    for name, transport in (("UDP", report.udp), ("TCP", report.tcp)):
        seen = "{}:{}".format(*transport.observed) if transport.observed else "nobody"
        print(f"{name}: seen as {seen}, mapping {transport.mapping}")
    print(f"behind a NAT: {report.behind_nat}, one port for both: {report.tcp_port_equals_udp}")
    print(report.verdict)


async def main(server: str | None) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if server is None:
            here = await stack.enter_async_context(Rendezvous(("127.0.0.1", 0), alt_listen=[("127.0.0.1", 0)]))
            server = "{}:{}".format(*here.address)
        profile = stack.enter_context(tempfile.TemporaryDirectory())
        peer = await stack.enter_async_context(Peer(rendezvous=server, profile=profile))
        show(await peer.netcheck())


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
