"""Where the relay of a call is, and the connection on which it is joined."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from p2ptunnel.addresses import canonical, helper_refusal
from p2ptunnel.errors import InvalidAddressError, RemoteProtocolError
from p2ptunnel.identity.grant import is_granted
from p2ptunnel.identity.keys import Identity
from p2ptunnel.net.web import WebRoute
from p2ptunnel.transports.relay import RelayPipe, ask_relay, join_relay
from p2ptunnel.transports.spare import Spares
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.traversal.ways import Ways
from p2ptunnel.types import Address, Role, ServerSpec
from p2ptunnel.wire.messages import RelayOffer

__all__ = ["Joining"]

_Join: TypeAlias = Callable[[str, RelayOffer | None], Awaitable[RelayPipe]]


class Joining:
    """Joins relays in the name of one peer.

    Args:
        identity: Whose calls they are.
        spares: Connections to relays that are there already.
        ways: Knows how servers were reached last.
    """

    def __init__(self, identity: Identity, spares: Spares, ways: Ways) -> None:
        self._ways: Final = ways
        self._identity: Final = identity
        self._spares: Final = spares
        self._elsewhere: Final[dict[Address, Address]] = {}  # the relay that a server has named last

    def expect(self, server: Address) -> None:
        """Have a connection ready for a call that is about to be made."""
        if self._ways.known(server) is None:
            self._spares.keep(self._elsewhere.get(server, server))

    def keep(self, port: PunchPort) -> None:
        """Have a connection to the relay of the port's server, on the way on which that was reached."""
        if port.server not in self._elsewhere:
            self._spares.keep(port.server, port.web)

    async def stand(self, server: Address) -> str:
        """Wait until the connection for a call at this server, if one is kept, is idle; return why it never will be."""
        return await self._spares.stand(self._elsewhere.get(server, server))

    def at(self, port: PunchPort, role: Role) -> _Join:
        """Return what joins the relay for a call that the server of `port` has introduced: the one that it names, or itself.

        What it returns raises what `join_relay` does, and RemoteProtocolError where the server names a relay that it has not
        signed for, or that stands where only our own owner may send us.  A caller speaks there before it is let in.
        """
        asked = ask_relay if role == "caller" else join_relay
        self.keep(port)

        async def join(token: str, offer: RelayOffer | None) -> RelayPipe:
            relay, key, grant = port.server, port.server_key, ""
            if offer is not None:
                relay, key, grant = _checked(offer, port, token), offer.key, offer.grant
                self._elsewhere[port.server] = relay
                self._spares.drop(port.server)
            web = _web(relay, key, port)
            self._spares.keep(relay, web)
            spare = self._spares.take(relay)
            if spare is None and web is not None:
                spare = await self._ways.links.connect(web)
            return await asked(relay, token, role, self._identity, server_key=key, grant=grant, spare=spare)

        return join


def _web(relay: Address, key: str, port: PunchPort) -> WebRoute | None:
    """Return how the relay is reached where the server is reached through the web only."""
    if port.web is None or relay == port.server:
        return port.web
    return WebRoute(ServerSpec(relay, key), port.web.way)


def _checked(offer: RelayOffer, port: PunchPort, token: str) -> Address:
    """Return where the relay of an offer is: no deeper inside than the server itself, which so cannot aim us at others."""
    try:
        relay, server = canonical(offer.host), canonical(port.server[0])
    except InvalidAddressError as error:
        raise RemoteProtocolError("a relay without a numeric address", "the server") from error
    if refusal := helper_refusal(relay, offer.port, server):
        raise RemoteProtocolError(f"a relay where no relay can be: {refusal}", "the server")
    if port.server_key and not is_granted(offer, port.server_key, token):
        raise RemoteProtocolError("a relay that the server has not signed for", "the server")
    return (str(relay), offer.port)
