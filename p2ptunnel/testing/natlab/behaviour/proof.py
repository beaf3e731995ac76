"""Measures sites side by side and compares each with its line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from p2ptunnel.testing.natlab.behaviour.expected import EXPECTED, Behaviour
from p2ptunnel.testing.natlab.behaviour.tcp import measure_ports, measure_tcp
from p2ptunnel.testing.natlab.behaviour.udp import measure_udp
from p2ptunnel.testing.natlab.behaviour.way import measure_hops, measure_ipv6
from p2ptunnel.testing.natlab.host import HostThread
from p2ptunnel.testing.natlab.kinds import KINDS, find_kind
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.site import Site

__all__ = ["Verdict", "measure", "prove"]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a kind should do, and what a site of it did; `problem` if it could not be measured."""

    kind: str
    expected: Behaviour
    measured: Behaviour | None
    problem: str = ""

    @property
    def is_proved(self) -> bool:
        """Whether it behaves as its name says."""
        return self.measured == self.expected

    @property
    def differences(self) -> list[str]:
        """In which columns it differs, and how."""
        return [self.problem] if self.measured is None else self.expected.differences(self.measured)


def measure(lab: Lab, site: Site) -> Behaviour:
    """Ask a site all questions, with sockets at both ends; takes up to 4 s, nearly all of it waiting for silence.

    Raises:
        OSError: The site does not even let connections out, or the machine was too busy.
    """
    server, host, neighbour = lab.server, site.hosts[0], site.hosts[-1]
    udp, tcp = measure_udp(server, host, neighbour), measure_tcp(server, host, neighbour)
    ports = measure_ports(server, host) if udp.mapping == tcp.mapping == "EI" else "-"
    hops, ipv6 = measure_hops(server, lab.inet, host), measure_ipv6(server, host)
    return Behaviour.parse(" ".join((*dataclasses.astuple(udp), *dataclasses.astuple(tcp), ports, hops, ipv6)))


def prove(kinds: Iterable[str] = KINDS) -> Iterator[Verdict]:
    """Measure a site of each kind, all at the same time, and judge them in the order given.

    A kind that differs is measured again, alone: on a busy machine an answer may have come late.

    Raises:
        ConfigError: There is no such kind.
        LaboratoryError: No laboratory can be built here.
    """
    names = list(kinds)
    for name in names:
        find_kind(name)
    with Lab() as lab:
        sites = [_add_site(lab, name) for name in names]
        threads = [lab.server.thread(measure, lab, site) for site in sites]
        first = [_judge(name, thread) for name, thread in zip(names, threads, strict=True)]
        for verdict, name in zip(first, names, strict=True):
            yield verdict if verdict.is_proved else _judge(name, lab.server.thread(measure, lab, _add_site(lab, name)))


def _add_site(lab: Lab, name: str) -> Site:
    """Add a site with a neighbour, who asks for hairpinning; a bare host is its own neighbour."""
    return lab.site(name, hosts=1 if find_kind(name).router == "none" else 2)


def _judge(name: str, thread: HostThread[Behaviour]) -> Verdict:
    try:
        return Verdict(name, EXPECTED[name], thread.result())
    except OSError as error:
        return Verdict(name, EXPECTED[name], None, str(error))
