"""Each tunable: its unit, its reason, its source.  Times are seconds unless the name says otherwise."""

from __future__ import annotations

from typing import Final

# --- the wire -----------------------------------------------------------------------------------------------------------
WIRE_VERSION: Final = 1  # extra.v of t=1 and t=4
RENDEZVOUS_PORT: Final = 7000  # UDP and TCP
DATAGRAM_MAX_BYTES: Final = 1200  # one JSON object; fits IPv6's minimum MTU with room for tunnels
DATAGRAM_MAX_DEPTH: Final = 4  # {extra: {cands: [[...]]}} is the deepest legal message
COOKIELESS_PAD_BYTES: Final = 176  # a request without cookie is padded to this; the longest 401 is shorter (no amplification)
MID_MAX: Final = 2**53 - 1  # every JSON implementation carries it exactly

# --- transactions ---------------------------------------------------------------------------------------------------------
RETRANSMIT_FIRST: Final = 0.1  # then x 1.5 up to the cap, each +-20 %
RETRANSMIT_FACTOR: Final = 1.5
RETRANSMIT_CAP: Final = 1.0
RETRANSMIT_JITTER: Final = 0.2
TRANSACTION_TIMEOUT: Final = 5.0
ANSWER_MEMORY: Final = 10.0  # how long a receiver answers a repeated mid from memory
ANSWER_MEMORY_MAX: Final = 4096  # entries; the oldest go first

# --- rendezvous -----------------------------------------------------------------------------------------------------------
COOKIE_EPOCH: Final = 30.0  # the current and the previous epoch's cookie are good
REGISTRATION_TTL: Final = 90.0  # three heartbeats and a half
HEARTBEAT_MIN: Final = 20.0  # UDP NAT bindings live 30 s and more (RFC 4787 asks 120)
HEARTBEAT_MAX: Final = 26.0
TOKEN_TTL: Final = 60.0  # an attempt is over long before
REGISTRATIONS_MAX: Final = 100_000  # one server's memory, about 1 KiB each
ATTEMPTS_MAX: Final = 10_000
COMPAT_REQUESTS_PER_MINUTE: Final = 3  # cookie-less t=4 and unsigned t=1 of one source, only with --compat seed

# --- punching -------------------------------------------------------------------------------------------------------------
PHASE_MIN: Final = 0.3  # W = max(this, 2 x estimated round trip)
PHASES: Final = 3  # callee's SYN dies on the way; caller's does; both plain
PUNCH_TIMEOUT: Final = 10.0  # a round that opened nothing by then never will
REDIAL_MIN: Final = 0.05  # after an RST; random between the two, since equal delays lock in step
REDIAL_MAX: Final = 0.1
REDIALS_PER_PHASE: Final = 6
OPENER_TTL_UNKNOWN: Final = 3  # no hop answered
HOPS_MAX: Final = 6
HOPS_WAIT: Final = 0.4
CANDIDATES_MAX: Final = 16
PUNCH_MSS_BYTES: Final = 1200  # an MTU black hole otherwise moves nothing at all
CONKEY_TTL: Final = 10.0
PREAMBLE_TIMEOUT: Final = 5.0  # from TCP up to ACCEPT
PENDING_CONNECTIONS: Final = 8  # unauthenticated ones on one punched listener

# --- channel and streams ----------------------------------------------------------------------------------------------------
HANDSHAKE_TIMEOUT: Final = 5.0
HANDSHAKE_MAX_BYTES: Final = 16 * 1024  # fed before the handshake is done; measured flights are under 1 KiB
STREAM_WINDOW_BYTES: Final = 256 * 1024  # what the peer may send before we have read
STREAMS_MAX: Final = 1024  # of one peer
CONNECT_TIMEOUT: Final = 15.0
CLOSE_GRACE: Final = 2.0
KEEPALIVE_IDLE: Final = 15.0  # PING on a quiet channel
KEEPALIVE_DEAD: Final = 45.0  # three unanswered ones
TARGET_TIMEOUT: Final = 10.0  # connecting to what a service stands for
