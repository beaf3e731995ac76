"""Which external port to ask a UPnP router for, and what its refusals mean.  Rule: decisions only, no state but what was tried.

Source: WANIPConnection:1 2.4.16, WANIPConnection:2 2.5.18; UPnP Device Architecture 1.1, 3.2.2.
"""

from __future__ import annotations

from typing import Final

from p2ptunnel.defaults import IGD_TRIES, PORTMAP_LIFETIME
from p2ptunnel.protocol.machine import Entropy
from p2ptunnel.protocol.portmapping import mappable_port
from p2ptunnel.types import Transport

__all__ = ["IgdWish", "igd_reason"]

_TAKEN: Final = frozenset({718, 729})  # ConflictInMappingEntry, ConflictWithOtherMechanisms
_NO_SUCH_ACTION: Final = frozenset({401, 602})
_FIRST_DYNAMIC: Final = 49152  # to 65535: 14 bits (RFC 6335)

_REASONS: Final = {
    401: "it has no such action",
    402: "it could not read the request",
    501: "it could not do it; perhaps it has no public address itself",
    606: "not authorized",
    718: "another machine has the port",
    724: "it maps a port to the same number only",
    725: "it maps for ever only, and what we could not take back after a crash is not asked for",
    728: "it has no room for another mapping",
    729: "something else in it has the port",
}


def igd_reason(code: int) -> str:
    """Return what a refusal says, in words; the router's own are not shown, since anything can stand there."""
    return _REASONS.get(code, f"code {code}")


class IgdWish:
    """One port that others are to get in at, and what was tried for it.

    Attributes:
        action: What to call.
        external_port: What to ask for.

    Raises:
        ConfigError: The local port is privileged.
    """

    def __init__(self, transport: Transport, client: str, port: int, entropy: Entropy, *, takes_any: bool) -> None:
        self.transport: Final = transport
        self.action = "AddAnyPortMapping" if takes_any else "AddPortMapping"
        self.external_port = mappable_port(port)
        self._client = client
        self._port: Final = port
        self._entropy = entropy
        self._tries = 0

    def arguments(self) -> dict[str, str | int]:
        """Return what the action is called with; the order is the standard's."""
        return {
            **self.entry(self.external_port),
            "NewInternalPort": self._port,
            "NewInternalClient": self._client,
            "NewEnabled": 1,
            "NewPortMappingDescription": "p2ptunnel",
            "NewLeaseDuration": PORTMAP_LIFETIME,
        }

    def entry(self, external_port: int) -> dict[str, str | int]:
        """Return what names a mapping, for DeletePortMapping."""
        return {"NewRemoteHost": "", "NewExternalPort": external_port, "NewProtocol": self.transport.upper()}

    def next_try(self, code: int) -> bool:
        """Take a refusal; return whether to ask again, with what the attributes are now."""
        if code in _NO_SUCH_ACTION and self.action == "AddAnyPortMapping":
            self.action = "AddPortMapping"
            return True
        self._tries += 1
        if code not in _TAKEN or self._tries >= IGD_TRIES:
            return False
        self.external_port = _FIRST_DYNAMIC + self._entropy.getrandbits(14)
        return True

    def granted(self) -> None:
        """Note that the router has agreed: renewals begin from here."""
        self._tries = 0
