"""The rendezvous server: introduces peers to each other and sees no byte of theirs."""

from p2ptunnel.server.rendezvous import Rendezvous

__all__ = ["Rendezvous"]
