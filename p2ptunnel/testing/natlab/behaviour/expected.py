"""What each kind does, one line a kind.  Rule: the table is the truth; a kind that differs from its line is broken."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["COLUMNS", "EXPECTED", "Behaviour"]


@dataclasses.dataclass(frozen=True, slots=True)
class Behaviour:
    """What a site's NAT does, measured from both of its sides.

    Mapping and filtering are EI, AD or APD: endpoint-independent, address-dependent, address-and-port-dependent
    (RFC 4787, RFC 5382).  A dash means that the question makes no sense, for instance because UDP is blocked.

    Attributes:
        udp_mapping: What the outside port of a UDP flow depends on; `blocked`.
        udp_filtering: Who may send in.
        udp_allocation: `preserving`, `other` (the same for all flows), `sequential`, `random`.
        udp_stranger: A datagram from somebody never spoken to: `open` (it gets in), `drop`, `icmp`.
        early: Whether a refused datagram moves the next mapping towards its sender: `stays`, `moves`.
        udp_hairpin: Whether inside hosts reach each other by outside addresses: `yes`, `no`.
        tcp_mapping: As for UDP.
        tcp_filtering: As for UDP.
        tcp_allocation: As for UDP.
        tcp_stranger: A SYN from somebody never spoken to: `open`, `drop`, `rst`.
        after_syn: A SYN from somebody to whom a SYN of ours went unanswered.
        after_rst: A SYN from somebody who answered a SYN of ours by RST.
        rst_ends: What that RST ended: this one `flow`, or the whole `mapping` with all other flows in it.
        tcp_hairpin: As for UDP.
        ports: Whether UDP and TCP flows of one inside port have one outside port: `same`, `other`.
        hops: How many hops away the internet is: a packet of this TTL dies there, and its sender hears of it.
        ipv6: A stranger's SYN over IPv6: `open`, `drop`, `rst`; `none` without IPv6.
    """

    udp_mapping: str
    udp_filtering: str
    udp_allocation: str
    udp_stranger: str
    early: str
    udp_hairpin: str
    tcp_mapping: str
    tcp_filtering: str
    tcp_allocation: str
    tcp_stranger: str
    after_syn: str
    after_rst: str
    rst_ends: str
    tcp_hairpin: str
    ports: str
    hops: str
    ipv6: str

    @classmethod
    def parse(cls, line: str) -> Behaviour:
        """Read one line of words, in the order of the attributes.

        Raises:
            TypeError: There are more words, or less.
        """
        return cls(*line.split())

    def words(self) -> tuple[str, ...]:
        """Return the words of its line."""
        return dataclasses.astuple(self)

    def differences(self, other: Behaviour) -> list[str]:
        """Say in which columns another behaviour differs, and how."""
        pairs = zip(COLUMNS, self.words(), other.words(), strict=True)
        return [f"{column} is {theirs}, not {ours}" for column, ours, theirs in pairs if ours != theirs]


COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Behaviour))

_TABLE: Final = """
pub                         EI      EI  preserving open stays yes EI  EI  preserving open open open flow    yes same  1 none
pubfw                       EI      APD preserving drop stays yes EI  APD preserving drop open drop flow    yes same  1 none
fc                          EI      EI  preserving open stays no  EI  EI  preserving open open open flow    no  same  2 none
ar                          EI      AD  preserving drop stays no  EI  AD  preserving drop open open flow    no  same  2 none
pr                          EI      APD preserving drop stays no  EI  APD preserving drop open drop flow    no  same  2 none
prR                         EI      APD preserving icmp stays no  EI  APD preserving rst  open rst  flow    no  same  2 none
prO                         EI      APD preserving icmp moves no  EI  APD preserving rst  open rst  flow    no  same  2 none
shift                       EI      APD other      drop stays no  EI  APD other      drop open drop flow    no  other 2 none
symR                        APD     APD random     drop -     no  APD APD random     drop drop drop flow    no  -     2 none
symS                        APD     APD sequential drop -     no  APD APD sequential drop drop drop flow    no  -     2 none
noU                         blocked -   -          -    -     -   EI  APD preserving drop open drop flow    no  -     2 none
noSO                        EI      APD preserving drop stays no  EI  APD preserving drop drop drop flow    no  same  2 none
dbl                         EI      APD other      drop stays no  EI  APD other      drop open drop flow    no  other 3 none
user_full_cone              EI      EI  preserving open stays no  EI  EI  preserving open open open flow    no  same  2 none
user_addr_restricted        EI      AD  preserving drop stays no  EI  AD  preserving drop open open flow    no  same  2 none
user_port_restricted        EI      APD preserving drop stays no  EI  APD preserving drop open drop flow    no  same  2 none
user_port_restricted_reject EI      APD preserving icmp stays no  EI  APD preserving rst  open rst  flow    no  same  2 none
user_shift                  EI      APD other      drop stays no  EI  APD other      drop open drop flow    no  other 2 none
user_sym_random             APD     APD random     drop -     no  APD APD random     drop drop drop flow    no  -     2 none
user_sym_seq                APD     APD sequential drop -     no  APD APD sequential drop drop drop flow    no  -     2 none
user_sym_addr               AD      APD random     drop -     no  AD  APD random     drop drop drop flow    no  -     2 none
user_no_udp                 blocked -   -          -    -     -   EI  APD preserving drop open drop flow    no  -     2 none
no_simopen_rst              EI      APD preserving icmp stays no  EI  APD preserving rst  rst  rst  flow    no  same  2 none
rst_kills                   EI      APD preserving icmp stays no  EI  APD preserving rst  open rst  mapping no  same  2 none
cgn                         EI      APD other      drop stays no  EI  APD other      drop open drop flow    no  other 2 none
cgn_hairpin                 EI      EI  other      open stays yes EI  EI  other      open open open flow    yes other 2 none
dbl_hairpin                 EI      APD other      drop stays no  EI  APD other      drop open drop flow    no  other 3 none
fc_hairpin                  EI      EI  preserving open stays yes EI  EI  preserving open open open flow    yes same  2 none
pr_cgn                      EI      APD other      drop stays no  EI  APD other      drop open drop flow    no  other 3 none
v6_open                     APD     APD random     drop -     no  APD APD random     drop drop drop flow    no  -     2 open
v6_drop                     APD     APD random     drop -     no  APD APD random     drop drop drop flow    no  -     2 drop
v6_reject                   APD     APD random     drop -     no  APD APD random     drop drop drop flow    no  -     2 rst
"""

EXPECTED: Final[Mapping[str, Behaviour]] = MappingProxyType(
    {name: Behaviour.parse(words) for name, words in (line.split(maxsplit=1) for line in _TABLE.strip().splitlines())}
)
"""What each kind of `KINDS` does, by its name."""
