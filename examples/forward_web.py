"""A web server that listens on the loopback of one machine is read in a browser, or by urllib, on another.

    python examples/forward_web.py

Both machines are this process; what would be typed on each is beside the code.
"""

import asyncio
import http.server
import tempfile
import threading
import urllib.request
from pathlib import Path

from p2ptunnel import Peer, Profile, Rendezvous


class Page(http.server.BaseHTTPRequestHandler):
    """Answers every request with one line."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<h1>This page never left its machine's loopback in clear.</h1>\n")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def read(url: str) -> str:
    with urllib.request.urlopen(url) as page:  # noqa: S310 - it is ours
        return str(page.read(), "utf-8")


async def main(port: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home, laptop = Profile(Path(directory, "home")), Profile(Path(directory, "laptop"))
        home.peers().add("laptop", laptop.identity().public, ("web",))  # it may open "web" and nothing else
        laptop.peers().add("home-nas", home.identity().public)
        async with Rendezvous(("127.0.0.1", 0)) as server:
            address = "{}:{}".format(*server.address)
            async with (
                Peer("home-nas", rendezvous=address, profile=home) as at_home,
                at_home.serve({"web": port}),  # p2ptunnel serve web=PORT
                Peer("laptop", rendezvous=address, profile=laptop) as away,
                away.forward("home-nas", "web") as forward,  # p2ptunnel forward home-nas web
            ):
                print(f"{forward.url} here is the web server over there")
                for _ in range(3):  # a blocking client needs a thread of its own: this one carries the forward
                    print(await asyncio.to_thread(read, forward.url), end="")
                print(f"{forward.stats.accepted} connections, {forward.stats.failed} failed")


with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as web:
    threading.Thread(target=web.serve_forever, daemon=True).start()
    asyncio.run(main(web.server_port))
    web.shutdown()
