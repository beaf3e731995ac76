"""Multicast DNS: our mark announced in our own networks, and the marks of others found there.

`zeroconf` does the protocol; it is imported when the first peer with `lan` starts, and where it is missing, or its port cannot
be had, there is nobody in our network, and that is all.  Rule: what came by multicast leaves here only if its mark is of a key
that is looked for, and then with no address that `lan_refusal` refuses.  Source: RFC 6762, 6763; docs/protocol/lan.md.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# zeroconf does not say of what its Awaitables are.
from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from msgspec import Struct

from p2ptunnel.addresses import canonical, lan_refusal
from p2ptunnel.defaults import LAN_SERVICES_MAX, LAN_TARGETS_AT_ONCE, LAN_TARGETS_MAX
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.net.filter import attach_neighbour_filter
from p2ptunnel.net.interfaces import lan_hosts, on_link
from p2ptunnel.net.sockets import is_loopback
from p2ptunnel.net.threads import in_thread
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address
from p2ptunnel.wire.lan import LAN_SALT_BYTES, LAN_SERVICE, LanMark, decode_mark, encode_mark, make_mark

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

__all__ = ["Lan", "OnFound"]

OnFound: TypeAlias = Callable[[bytes, tuple[Address, ...], tuple[Address, ...]], None]
"""Gets the salt of a mark, and where its bearer says that it is: on our link, and elsewhere in private networks."""

_NAME_BYTES: Final = 16
_ASKED_AT_ONCE: Final = 8
_ASKED_FOR_MS: Final = 1500


class _Service(Struct, frozen=True):
    """What was announced; believed by nobody."""

    mark: LanMark
    addresses: tuple[Address, ...]


class _Announcement(Struct, frozen=True):
    """What we want announced, and whom to tell the salt."""

    key: PublicKey
    port: int
    on_salt: Callable[[bytes], None]


class Lan:
    """Our own networks, as far as multicast reaches.

    Args:
        hosts: Returns our addresses there, and is asked again whenever the network has changed; None: `lan_hosts`.
        tracer: Told why nobody is found, and what is announced.

    Attributes:
        trouble: Why nobody can be found here now; empty while all is well.
    """

    def __init__(self, *, hosts: Callable[[], tuple[str, ...]] | None = None, tracer: Tracer | None = None) -> None:
        self.trouble = ""
        self._hosts: Final = hosts or lan_hosts
        self._trace: Final = tracer or Tracer()
        self._changed: Final = asyncio.Event()
        self._services: OrderedDict[str, _Service] = OrderedDict()
        self._finders: list[tuple[PublicKey, OnFound]] = []
        self._tasks: Final[set[asyncio.Future[Any]]] = set()
        self._asking = 0
        self._is_elsewhere = True
        self._is_on_loopback = False
        self._wanted: _Announcement | None = None
        self._served: _Announcement | None = None
        self._announced: ServiceInfo | None = None
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen and to ask, on the loop that runs; returns at once, and starting twice is fine."""
        if self._running is None:
            self._changed.set()
            self._running = asyncio.create_task(self._run())

    def network_changed(self) -> None:
        """Listen, ask and announce anew where we are now; under a fresh salt, so that nobody sees who has moved."""
        self._is_elsewhere = True
        self._changed.set()

    def announce(self, key: PublicKey, port: int, on_salt: Callable[[bytes], None]) -> None:
        """Announce that whoever knows `key`, ours, finds us at a port of UDP and TCP, until `withdraw`.

        Args:
            key: Not shown.
            port: The same for both.
            on_salt: Called with the salt of the mark each time before it is announced.
        """
        self._wanted = _Announcement(key, port, on_salt)
        self._changed.set()

    def withdraw(self) -> None:
        """Announce no more, and say goodbye."""
        self._wanted = None
        self._changed.set()

    @contextlib.contextmanager
    def finding(self, key: PublicKey, on_found: OnFound) -> Generator[None]:
        """Call back for each service that bears a mark of `key`, known ones at once, while the block lasts."""
        finder = (key, on_found)
        self._finders.append(finder)
        try:
            for service in tuple(self._services.values()):
                self._tell(service, finder)
            yield
        finally:
            self._finders.remove(finder)

    async def close(self) -> None:
        """Say goodbye, and close every socket; cancelled, without the goodbye.  Closing twice is fine."""
        tasks = self._cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            self._leave()
            await asyncio.gather(*self._tasks)
        finally:
            self.abort()

    def abort(self) -> None:
        """Close every socket at once; what we announced is forgotten when nobody has heard of it for long enough."""
        self._cancel()
        zeroconf, self._zeroconf = self._zeroconf, None
        if zeroconf is not None:
            _abort(zeroconf)

    def _cancel(self) -> list[asyncio.Future[Any]]:
        tasks = [*self._tasks, *([self._running] if self._running else [])]
        for task in tasks:
            task.cancel()
        return tasks

    # --- what is announced and asked --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            hosts = self._hosts()
            self._is_on_loopback = any(map(is_loopback, hosts))
            self._note_trouble("" if hosts else "this machine has no address in a private network")
            if hosts or self._zeroconf is not None:
                await self._try_to_settle(hosts)

    async def _try_to_settle(self, hosts: tuple[str, ...]) -> None:
        try:
            if self._zeroconf is None:
                await in_thread(importlib.import_module, "zeroconf.asyncio")  # 50 ms, the first time
            from zeroconf import Error
        except ImportError as error:
            self._note_trouble(str(error))
            return
        try:
            await self._settle(hosts)
        except (OSError, Error) as error:  # no multicast here, or the port is another's alone
            self._note_trouble(str(error) or type(error).__name__)

    async def _settle(self, hosts: tuple[str, ...]) -> None:
        """Bring what is open and announced in line with the network and with what is wanted."""
        if self._is_elsewhere:
            self._is_elsewhere = False
            self._leave()
            await self._listen(hosts)
        elif self._wanted is not self._served:
            await self._say_goodbye()
        if self._wanted is not None and self._zeroconf is not None and self._announced is None:
            await self._announce(self._zeroconf, self._wanted, hosts)

    def _note_trouble(self, reason: str) -> None:
        self.trouble = reason
        if reason:
            self._trace("lan", "unavailable", reason=reason)

    async def _listen(self, hosts: tuple[str, ...]) -> None:
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        if hosts:
            opened = self._zeroconf = AsyncZeroconf(interfaces=list(hosts), ip_version=IPVersion.V4Only)
            self._browser = AsyncServiceBrowser(opened.zeroconf, LAN_SERVICE, handlers=[self._on_change])
            await opened.zeroconf.async_wait_for_start()
            for reader in opened.zeroconf.engine.readers:
                attach_neighbour_filter(reader.sock)

    def _leave(self) -> None:
        """Forget whom there was where we were, and say goodbye, as far as anybody still hears it."""
        browser, zeroconf = self._browser, self._zeroconf
        self._browser = self._zeroconf = self._announced = None
        self._services.clear()
        if browser is not None and zeroconf is not None:
            closing = self._keep(_close(browser, zeroconf))
            closing.add_done_callback(lambda _: _abort(zeroconf))  # also of one that was cancelled before it began

    async def _say_goodbye(self) -> None:
        self._served = None
        announced, self._announced = self._announced, None
        if announced is not None and self._zeroconf is not None:
            await self._say(self._zeroconf.async_unregister_service(announced))

    async def _announce(self, zeroconf: AsyncZeroconf, wanted: _Announcement, hosts: tuple[str, ...]) -> None:
        self._served = wanted
        salt = secrets.token_bytes(LAN_SALT_BYTES)
        self._announced = _service_info(wanted, salt, hosts)
        wanted.on_salt(salt)
        # 128 random bits collide with nobody's: to ask first would only let anybody say no
        await self._say(zeroconf.async_register_service(self._announced, cooperating_responders=True))
        self._trace("lan", "announced", hosts=list(hosts), port=wanted.port)

    async def _say(self, saying: Coroutine[Any, Any, Awaitable[Any]]) -> None:
        """Say something, and have `close` end the repetitions, which go on by themselves."""
        self._keep(await saying)

    def _keep(self, going_on: Awaitable[Any]) -> asyncio.Future[Any]:
        task = asyncio.ensure_future(going_on)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- what is found ----------------------------------------------------------------------------------------------------

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        from zeroconf import BadTypeInNameException, ServiceStateChange
        from zeroconf.asyncio import AsyncServiceInfo

        if state_change is ServiceStateChange.Removed:
            self._services.pop(name, None)
            return
        try:
            info = AsyncServiceInfo(service_type, name)
        except BadTypeInNameException:  # no name of ours
            return
        if info.load_from_cache(zeroconf):
            self._note(name, info)
        elif self._asking < _ASKED_AT_ONCE:
            self._asking += 1
            self._keep(self._ask(zeroconf, name, info))

    async def _ask(self, zeroconf: Zeroconf, name: str, info: ServiceInfo) -> None:
        """Ask for what did not come along with a name."""
        from zeroconf import NotRunningException

        try:
            with contextlib.suppress(NotRunningException):  # we have left
                if await info.async_request(zeroconf, _ASKED_FOR_MS):
                    self._note(name, info)
        finally:
            self._asking -= 1

    def _note(self, name: str, info: ServiceInfo) -> None:
        service = _service_of(info)
        if service is None:
            return
        self._services[name] = service
        self._services.move_to_end(name)
        if len(self._services) > LAN_SERVICES_MAX:
            self._services.popitem(last=False)
        for finder in tuple(self._finders):
            self._tell(service, finder)

    def _tell(self, service: _Service, finder: tuple[PublicKey, OnFound]) -> None:
        key, on_found = finder
        if not service.mark.is_of(key.raw):
            return
        linked = on_link(host for host, _ in service.addresses)
        usable = [address for address in service.addresses if self._is_usable(address, linked)]
        near = tuple(address for address in usable if address[0] in linked)
        far = tuple(address for address in usable if address[0] not in linked)
        on_found(service.mark.salt, near, far)

    def _is_usable(self, address: Address, linked: Collection[str]) -> bool:
        host, port = address
        return lan_refusal(canonical(host), port, is_on_link=host in linked, on_loopback=self._is_on_loopback) is None


async def _close(browser: AsyncServiceBrowser, zeroconf: AsyncZeroconf) -> None:
    """Say goodbye and close."""
    await browser.async_cancel()
    await zeroconf.async_close()


def _abort(zeroconf: AsyncZeroconf) -> None:
    """Close at once, and do so twice if need be; its own `close` would warn of the goodbye that it cannot say."""
    zeroconf.zeroconf.done = True
    zeroconf.zeroconf.engine.close()


def _service_info(wanted: _Announcement, salt: bytes, hosts: tuple[str, ...]) -> ServiceInfo:
    """Return our service as it is announced: random names, a port, our addresses, the mark."""
    from zeroconf import ServiceInfo

    return ServiceInfo(
        LAN_SERVICE,
        f"{secrets.token_hex(_NAME_BYTES)}.{LAN_SERVICE}",
        port=wanted.port,
        addresses=[ipaddress.ip_address(host).packed for host in hosts[:LAN_TARGETS_AT_ONCE]],
        properties=dict(encode_mark(make_mark(wanted.key.raw, salt))),
        server=f"{secrets.token_hex(_NAME_BYTES)}.local.",
    )


def _service_of(info: ServiceInfo) -> _Service | None:
    """Return what a service says of itself, None if it is none of a peer."""
    from zeroconf import IPVersion

    mark = decode_mark(info.properties)
    hosts = [str(address) for address in info.ip_addresses_by_version(IPVersion.V4Only)]
    if mark is None or not info.port or not hosts:
        return None
    return _Service(mark, tuple((host, info.port) for host in hosts[:LAN_TARGETS_MAX]))
