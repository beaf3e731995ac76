"""The rendezvous server: introduces peers to each other and sees no byte of theirs."""

from p2ptunnel.server.relaying import RelayServer
from p2ptunnel.server.rendezvous import Rendezvous
from p2ptunnel.server.web import Web

__all__ = ["RelayServer", "Rendezvous", "Web"]
