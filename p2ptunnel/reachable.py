"""The way in: what makes a peer one that others find and call.

Rule: it is registered once, however many need it, and only while somebody does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from p2ptunnel.abc import Pipe
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.events import EventHub, ServerFound, ServerLost
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.identity.taglock import TagLock
from p2ptunnel.protocol.intent import IntentJudge
from p2ptunnel.session.session import SessionOptions, accept_session
from p2ptunnel.started import Started
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.answer import Admit, AnsweringPort
from p2ptunnel.traversal.servers import Servers
from p2ptunnel.types import RelayUse, ServerSpec, Tag, format_address
from p2ptunnel.wire.frames import conkey_to_selector

__all__ = ["Reachable"]


class Reachable:
    """Has a peer that is started found and called: in its own network, and with a server's help from everywhere.

    Args:
        up: Keeps the registration, and the sessions that come of calls.
        servers: Those to register with.
        directory: The profile's, of which one program at a time serves under a tag.
        relay: Whether calls may come over the relay.
        is_mapping: Whether our router is asked for a way in.
        options: Of the sessions.
        tell: Gets the events of the server that is lost and found.
        tracer: Gets what happens.
    """

    def __init__(
        self,
        up: Started,
        servers: Servers,
        directory: Path,
        *,
        relay: RelayUse,
        is_mapping: bool,
        options: SessionOptions,
        tell: EventHub,
        tracer: Tracer,
    ) -> None:
        self._up: Final = up
        self._servers: Final = servers
        self._directory: Final = directory
        self._relay: Final[RelayUse] = relay
        self._is_mapping: Final = is_mapping
        self._options: Final = options
        self._tell: Final = tell
        self._trace: Final = tracer

    async def register(self, tag: Tag) -> AnsweringPort | None:
        """Be found and answer calls until `up.leave`; all services share one registration, None where there is no server.

        Raises:
            P2PTunnelError: As `Peer.serve`, as far as it is about the tag and the server.
        """
        up = self._up
        up.answered_for += 1
        try:
            if up.tag_lock is None:
                up.tag_lock = TagLock.take(self._directory, tag, "serve")
            if up.answering is None:
                await up.registering.join(None, lambda: self._answer(tag))
        except BaseException:
            await up.leave()
            raise
        return up.answering  # it stays as long as it is needed

    async def _answer(self, tag: Tag) -> None:
        up = self._up

        async def admit(pipe: Pipe, conkey: str, key: PublicKey | None = None) -> None:
            session = await accept_session(
                pipe,
                identity=up.identity,
                access=up.table,
                selector=conkey_to_selector(conkey, "this machine"),
                on_open=up.table.handle,
                key=key,
                find=up.find,
                options=self._options,
                tracer=self._trace,
            )
            up.keep(session)

        up.answer_lan(admit)
        if up.lan is None or self._servers.specs:
            up.answering = await self._servers.first(lambda server: self.register_at(server, tag, up.judge, admit))

    async def register_at(self, server: ServerSpec, tag: Tag, judge: IntentJudge, admit: Admit) -> AnsweringPort:
        """Register under a tag at one server, and answer calls there, for somebody who closes what is returned.

        Args:
            server: Its address is numeric.
            tag: Under which we are found.
            judge: Of the calls.
            admit: Given the pipe of each that passes.

        Raises:
            P2PTunnelError: As `Peer.serve`, as far as it is about the tag and the server.
        """
        port = await self._up.open_port(server)
        credentials = KeyCredentials(self._up.identity, tag, server_key=server.key, join_token=server.join_token)

        def on_server(cause: str) -> None:
            name = format_address(port.server)
            self._tell(ServerLost(tag=tag, server=name, cause=cause) if cause else ServerFound(tag=tag, server=name))

        answering = AnsweringPort(
            port,
            tag,
            credentials,
            judge,
            admit,
            join=None if self._relay == "never" else self._up.joining.at(port, "callee"),
            is_punching=self._relay != "always",
            is_mapping=self._is_mapping,
            birthdays=self._up.birthdays,
            rounds=self._up.rounds,
            open_other=lambda: self._up.fresh_port(server),
            on_server=on_server,
            tracer=self._trace,
        )
        try:
            await answering.start()
        except BaseException:
            await answering.close()
            raise
        return answering

    def path_suspected(self) -> None:
        """Make sure that calls still reach us, if they are to: a path to a peer is silent."""
        answering = self._up.answering
        if answering is None:
            return
        if not answering.is_worn:
            answering.path_suspected()
        elif self._up.replacing is None:
            self._up.replacing = asyncio.create_task(self._replace_port(answering))

    async def _replace_port(self, worn: AnsweringPort) -> None:
        """Register from a fresh port; the old one answers until then.  Who needs it no more cancels this."""
        up = self._up
        try:
            await self._answer(worn.tag)
        except (P2PTunnelError, OSError) as error:
            self._trace("traversal", "port_kept", reason=str(error))
        else:
            fresh = up.answering
            assert fresh is not None
            fresh.admit_raw = worn.admit_raw
            worn.abort()
            self._trace("traversal", "port_replaced", observed=format_address(fresh.observed) if fresh.observed else "")
        finally:
            up.replacing = None
