"""Who joins a relay: the signed body of t=6.  Source: wire document, t=6."""

from __future__ import annotations

from p2ptunnel.identity.judge import relay_payload, to_base64
from p2ptunnel.identity.keys import Identity
from p2ptunnel.types import Role
from p2ptunnel.wire.messages import RelayJoinExtra

__all__ = ["relay_extra"]


def relay_extra(identity: Identity, token: str, role: Role, *, server_key: str = "", grant: str = "") -> RelayJoinExtra:
    """Return the body by which one end of a call joins its server's relay.

    Args:
        identity: Ours: the key that the intent of t=4 was signed with, or that is registered.
        token: Of the call.
        role: Which end we are.
        server_key: The relay's public key as text, which is the server's where that relays; empty if it has none.
        grant: By which a server elsewhere has introduced the call to the relay.

    Raises:
        InvalidKeyError: `server_key` is no key.
        ValueError: The token is none of a server of ours: too long, or not ASCII.
    """
    signature = identity.sign(relay_payload(server_key, token, role, identity.public))
    return RelayJoinExtra(token=token, role=role, key=str(identity.public), sig=to_base64(signature), grant=grant)
