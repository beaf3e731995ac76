"""Commands on a machine behind its router, over SSH, with no known_hosts question: the peer vouches for its server's key.

    pip install 'p2ptunnel[ssh]'
    python examples/ssh_run.py

The SSH server is one of asyncssh's on loopback, in the place of the sshd that a real machine has.
"""

import asyncio
import tempfile
from pathlib import Path

import asyncssh

from p2ptunnel import Peer, Profile, Rendezvous


def answer(process: asyncssh.SSHServerProcess[str]) -> None:
    """Play the shell of the machine at home."""
    process.stdout.write(f"ran {process.command!r} for {process.get_extra_info('username')}\n")
    process.exit(0)


async def main() -> None:
    host_key, user_key = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
    may_log_in = asyncssh.import_authorized_keys(user_key.export_public_key().decode())
    sshd = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=[host_key], authorized_client_keys=may_log_in, process_factory=answer
    )
    port = sshd.get_port()

    with tempfile.TemporaryDirectory() as directory:
        home, laptop = Profile(Path(directory, "home")), Profile(Path(directory, "laptop"))
        home.peers().add("laptop", laptop.identity().public, ("ssh",))
        laptop.peers().add("home-nas", home.identity().public)
        async with sshd, Rendezvous(("127.0.0.1", 0)) as server:
            address = "{}:{}".format(*server.address)
            async with (
                Peer("home-nas", rendezvous=address, profile=home) as at_home,
                at_home.serve({"ssh": f"127.0.0.1:{port}"}),  # "ssh" alone is this machine's own port 22
                Peer("laptop", rendezvous=address, profile=laptop) as away,
                # The host key was asked of the server over there and came through the authenticated channel.
                await away.ssh("home-nas", username="pi", client_keys=[user_key]) as ssh,
            ):
                for command in ("uname -a", "uptime"):
                    print((await ssh.run(command, check=True)).stdout, end="")


asyncio.run(main())
