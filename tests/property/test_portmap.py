"""Whatever a router says, and whenever: nothing is raised, nothing is asked without end, nothing privileged is believed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.defaults import PORTMAP_FIRST, PORTMAP_PAUSE, PORTMAP_TRIES
from p2ptunnel.protocol.portmap import MappingsReturned, PortMapClient, PortMapState
from p2ptunnel.protocol.portmapping import PortMapped
from p2ptunnel.wire import natpmp, pcp
from tests.helpers.routers import ROUTER, FakeRouter

words = st.one_of(st.sampled_from([0, 1, 7200, 2**32 - 1]), st.integers(0, 2**32 - 1))
ports = st.one_of(st.sampled_from([0, 22, 1023, 1024, 40123]), st.integers(0, 65535))
codes = st.one_of(st.sampled_from([0, 1, 2, 4]), st.integers(0, 255))
transports = st.sampled_from(["tcp", "udp"])
hosts = st.one_of(st.sampled_from(["0.0.0.0", "127.0.0.1", "198.51.101.7", "10.0.0.1"]), st.ip_addresses(v=4).map(str))

pcp_lies = st.tuples(codes, words, words, transports, ports, hosts, ports)
natpmp_lies = st.builds(
    natpmp.MapAnswer, code=codes, epoch=words, transport=transports, port=ports, external_port=ports, lifetime=words
).map(natpmp.encode_answer)
addresses = st.builds(natpmp.AddressAnswer, codes, words, hosts).map(natpmp.encode_answer)
news = st.builds(pcp.Announcement, codes, words).map(pcp.encode_answer)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("lie"), pcp_lies),
        st.tuples(st.just("data"), st.one_of(natpmp_lies, addresses, news, st.binary(max_size=80))),
        st.tuples(st.just("news"), st.one_of(addresses, news, st.binary(max_size=80))),
        st.tuples(st.just("wait"), st.floats(0, 4000)),
        st.tuples(st.just("answer"), st.booleans()),
        st.tuples(st.just("shut"), st.none()),
        st.tuples(st.just("start"), st.none()),
    ),
    max_size=40,
)


class Siege:
    """A machine, an honest router that may be cut off, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.router = FakeRouter()
        self.client = PortMapClient(ROUTER, "192.168.1.2", 40123, random.Random(1))
        self.is_answered = False
        self.sent = 0
        self.events: list[object] = []

    def settle(self) -> None:
        for _ in range(50):
            datagrams = self.client.datagrams_to_send()
            self.sent += len(datagrams)
            for datagram in datagrams:
                answer = self.router.answer(datagram.data, self.now)
                if answer is not None and self.is_answered:
                    self.client.receive_datagram(answer, ROUTER, self.now)
            if not datagrams:
                break
        else:
            raise AssertionError("the two never stop talking")
        for event in self.client.events():
            self.events.append(event)
            if isinstance(event, PortMapped):
                assert event.mapping.external[1] >= 1024
                assert not event.mapping.external[0].startswith(("0.", "127."))

    def wait(self, seconds: float) -> None:
        end, sent = self.now + seconds, self.sent
        while (due := self.client.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.client.handle_timer(self.now)
            self.settle()
        self.now = end
        rounds = 2 + seconds / min(PORTMAP_PAUSE, PORTMAP_FIRST * 2**PORTMAP_TRIES)
        assert self.sent - sent <= 2 * 3 * PORTMAP_TRIES * rounds  # two ports, up to three datagrams each

    def lie(self, fields: tuple[int, int, int, str, int, str, int]) -> None:
        """Say something that carries the nonce, as only the router could."""
        code, lifetime, epoch, transport, port, host, external = fields
        wish = self.client._wishes[transport]  # type: ignore[index]
        answer = pcp.MapAnswer(
            code=code,
            lifetime=lifetime,
            epoch=epoch,
            nonce=wish.nonce,
            transport=wish.transport,
            port=port,
            external=(host, external),
        )
        self.client.receive_datagram(pcp.encode_answer(answer), ROUTER, self.now)


def play(siege: Siege, steps: list[tuple[str, object]]) -> None:
    for what, value in steps:
        match what, value:
            case "lie", tuple(fields):
                siege.lie(fields)
            case "data", bytes(data):
                siege.client.receive_datagram(data, ROUTER, siege.now)
            case "news", bytes(data):
                siege.client.receive_announcement(data, ROUTER, siege.now)
            case "wait", float(seconds):
                siege.wait(seconds)
            case "answer", bool(is_answered):
                siege.is_answered = is_answered
            case "shut", _:
                siege.client.find_shut(siege.now)
            case _:
                siege.client.start(siege.now)
        siege.settle()


@given(steps)
def test_nothing_that_a_router_says_upsets_the_machine_and_it_always_ends(steps: list[tuple[str, object]]) -> None:
    siege = Siege()
    siege.client.start(siege.now)
    play(siege, steps)
    siege.client.close(siege.now)
    siege.settle()
    siege.wait(PORTMAP_FIRST * 2**PORTMAP_TRIES)
    assert siege.client.state is PortMapState.CLOSED
    assert isinstance(siege.events[-1], MappingsReturned)
    assert siege.client.next_deadline() is None


@given(steps)
def test_an_honest_router_that_answers_in_the_end_keeps_nothing_after_closing(steps: list[tuple[str, object]]) -> None:
    siege = Siege()
    siege.client.start(siege.now)
    play(siege, steps)
    siege.is_answered = True
    siege.client.start(siege.now)
    siege.settle()
    assert set(siege.router.mappings) == {("tcp", 40123), ("udp", 40123)}
    siege.client.close(siege.now)
    siege.settle()
    assert siege.router.mappings == {}
