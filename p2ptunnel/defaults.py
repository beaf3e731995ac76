"""Each tunable: its unit, its reason, its source.  Times are seconds unless the name says otherwise."""

from __future__ import annotations

from typing import Final

# --- the wire -----------------------------------------------------------------------------------------------------------
WIRE_VERSION: Final = 1  # extra.v of t=1 and t=4
RENDEZVOUS_PORT: Final = 7000  # UDP and TCP
DATAGRAM_MAX_BYTES: Final = 1200  # one JSON object; fits IPv6's minimum MTU with room for tunnels
DATAGRAM_MAX_DEPTH: Final = 4  # {extra: {cands: [[...]]}} is the deepest legal message
COOKIELESS_PAD_BYTES: Final = 240  # a request without cookie is padded to this; the longest 401 is shorter (no amplification)
PROBE_PAD_BYTES: Final = 320  # t=5: its answer also lists the server's other addresses
STUN_BARE_PER_SECOND: Final = 200  # answers to 20-byte Binding requests, 32 or 44 bytes each; of all sources together
STUN_BARE_OF_SOURCE_PER_SECOND: Final = 10
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
ATTEMPTS_OF_SOURCE_MAX: Final = 64  # of one source at a time; an attempt ends when its caller acknowledges the result
ATTEMPTS_OF_CALLEE_MAX: Final = 32  # to one callee at a time, until it has answered
ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX: Final = 4  # of those
SIGNALS_PER_SECOND: Final = 20.0  # handed on for one side of a call: what it tells, and repetitions on a lossy line
SIGNALS_BURST: Final = 20.0
SIGNAL_PAIRS_MAX: Final = 20_000  # whose signals are handed on, about 0.5 KiB each; the oldest go first
SIGNALS_WAITING_MAX: Final = 20_000  # that are not acknowledged; the oldest go first
COMPAT_REQUESTS_PER_MINUTE: Final = 3  # cookie-less t=4 and unsigned t=1 of one source, only with --compat seed
COMPAT_REQUESTS_PER_SECOND: Final = 5  # of all sources together: sources can be forged

# --- signed calls ---------------------------------------------------------------------------------------------------------
INTENT_WINDOW: Final = 64  # counters of one key that are remembered; below the smallest of them nothing counts any more
INTENT_KEYS_MAX: Final = 4096  # keys whose counters are remembered, those that called last
INTENTS_PER_SECOND: Final = 50.0  # signatures verified, 0.15 ms each: less than 1 % of a core, whoever floods
INTENTS_OF_SOURCE_PER_SECOND: Final = 10.0  # of those, of one host and of one key
STRANGERS_PER_SECOND: Final = 5.0  # signatures of keys that we do not admit, so that we can tell them so
PAIRING_CALL_PAUSE: Final = 2.0  # between calls of strangers that are let in while pairing is open
COUNTER_STEP: Final = 2**20  # of the counter kept on disk, a second of it: what a crash may lose
FOUNDING_CALLS_PER_SECOND: Final = 1.0  # of programs that sign nothing, where they are let in at all; 8 at once
FOUNDING_CALLS_BURST: Final = 8.0

# --- punching -------------------------------------------------------------------------------------------------------------
PHASE_MIN: Final = 0.3  # W = max(this, PHASE_ROUND_TRIPS x estimated round trip)
PHASE_ROUND_TRIPS: Final = 2.5  # the callee's first SYN must live for two: until t=11 and a handshake are through
SYN_REPEAT: Final = 1.0  # after which kernels send a SYN again that nobody has answered
PLAIN_MARGIN: Final = 0.01  # a callee that cannot open first sends its SYN this much after the caller's
PHASES: Final = 3  # callee's SYN dies on the way; caller's does; both plain
PUNCH_TIMEOUT: Final = 10.0  # a round that opened nothing by then never will
BURNT_SECONDS: Final = 130.0  # routers keep the half-open connections of a failed attempt for 120
BURNT_PAIRS_MAX: Final = 256  # of a port and a host that are remembered; those that end first go first
SWAPPED_MAX: Final = 256  # peers with which the caller opens first in the next round; the oldest go first
ROUNDS: Final = 2  # of an attempt: the second one from fresh ports, with swapped roles
APART_CALLS_MAX: Final = 4  # answered at one time from other ports than the registered one, or going on from there
APART_PATIENCE: Final = 1.0  # for another port to be ready; then it must do without
REDIAL_MIN: Final = 0.05  # after an RST; random between the two, since equal delays lock in step
REDIAL_MAX: Final = 0.1
REDIALS_PER_PHASE: Final = 6
PUNCH_ACCEPT_PAUSE: Final = 0.2  # after descriptors ran out; connections wait in the queue, but an attempt is short
OPENER_TTL_UNKNOWN: Final = 3  # no hop answered
IPV6_PHASE_MAX: Final = 1.85 * SYN_REPEAT  # a little later kernels send the SYN a third time
OPENER_HOPS_IPV6: Final = 2  # no NAT to get through: the home's router, and the provider's first
IPV6_PROBING: Final = 0.35  # for three probes over UDP, at an address that no server has seen
HOPS_MAX: Final = 6
HOPS_WAIT: Final = 0.4
CANDIDATES_MAX: Final = 16
IPV6_CANDIDATES_MAX: Final = 3  # of a peer's: those that its server has not seen
INSIDE_CANDIDATES_MAX: Final = 2  # of a peer's: ways in of its own router, behind a NAT that is before us as well
PUNCH_MSS_BYTES: Final = 1200  # an MTU black hole otherwise moves nothing at all
PREAMBLE_TIMEOUT: Final = 5.0  # from TCP up to ACCEPT
CALLS_MAX: Final = 32  # answered at one time; a peer has few callers, a flood has many
PENDING_CONNECTIONS: Final = 8  # unauthenticated ones on one punched listener
RAW_STREAMS_WAITING: Final = 32  # of programs without a key, until somebody takes them; anybody can make more

# --- guessing ports -------------------------------------------------------------------------------------------------------
PREDICTED_TCP: Final = 5  # ports ahead of a sequential NAT's last one; other flows take some in between
PREDICTED_UDP: Final = 8
PREDICTED_BUSY: Final = 16  # where its steps were seen to differ
PREDICTED_MAX: Final = 32  # the window doubles with each round up to this
PREDICTED_UNSEALED: Final = 5  # on no better word than hints, which are as old as the call
BIRTHDAY_AFTER: Final = 0.15  # at least, after the first SYN: a side that is open has answered that by then
BIRTHDAY_AFTER_ROUND_TRIPS: Final = 1.5  # and at least so many, the answer's one among them
BIRTHDAY_HOLES: Final = 512  # sockets of the hard side; 672 guesses hit one with 99.5 %
BIRTHDAY_HOLES_FIRST: Final = 96  # open when guesses are invited; the others are opened while these come: 98.7 %, and sooner
BIRTHDAY_PROBES: Final = 672  # packets a round; a probe is one, unless it waits so long that the kernel repeats it
BIRTHDAY_FLOWS: Final = 704  # of all birthdays that routers may remember; with 64 of an attempt, a table has 768 of ours
BIRTHDAY_FLOWS_FEW: Final = 256  # left of these, below which a birthday waits; 87 % with all holes, 93 % with all guesses
BIRTHDAY_FLOWS_REMEMBERED: Final = 130.0  # after its beginning: an attempt's 10 s, and 120 s that Linux keeps a SYN in mind
BIRTHDAY_FLOWS_PER_SECOND: Final = 500  # new ones, on either side
BIRTHDAY_TICK: Final = 0.01
BIRTHDAY_CREDIT: Final = 256  # packets for one go-ahead
BIRTHDAY_RENEWAL: Final = 0.4  # between go-aheads: each shows that both routers still work
BIRTHDAY_PROBES_OPEN: Final = 256  # sockets of the easy side at any instant
BIRTHDAY_SOCKETS_FEW: Final = 64  # either side, where there are descriptors for no more: 49 % with so many holes; below, none
DESCRIPTORS_BESIDE: Final = 64  # left to all else while a birthday lasts
DESCRIPTORS: Final = 1024  # a starting peer raises a lower soft limit to this, Linux' own; macOS gives 256
BIRTHDAY_PROBE_GRACE: Final = 0.1  # for which a probe waits, beyond round trips
BIRTHDAY_BLOCK: Final = 4096  # ports so near to each other lie in one block of a provider's NAT
BIRTHDAY_SILENCE: Final = 2.0  # without a go-ahead, after which the easy side is done
BIRTHDAY_PAUSE: Final = 10.0  # between two to one peer
BIRTHDAYS_PER_HOUR: Final = 6  # on one network
BIRTHDAYS_OF_PEER_PER_HOUR: Final = 2  # of those: the second finds what the first has missed; no peer takes them all

# --- channel and streams ----------------------------------------------------------------------------------------------------
HANDSHAKE_TIMEOUT: Final = 5.0
HANDSHAKE_MAX_BYTES: Final = 16 * 1024  # fed before the handshake is done; measured flights are under 1 KiB
STREAM_WINDOW_BYTES: Final = 256 * 1024  # what the peer may send before we have read
UNSENT_MAX_BYTES: Final = 128 * 1024  # TCP_NOTSENT_LOWAT: what the kernel queues beyond what the path takes
BATCH_FIRST_BYTES: Final = 64 * 1024  # sealed and written at a time while it is unknown how fast the path is
BATCH_MIN_BYTES: Final = 8 * 1024  # on slow paths; 256 KiB on fast ones
BATCH_SLOW: Final = 0.02  # what a batch may take to leave: all else on the channel waits as long
STREAM_WINDOW_MAX_BYTES: Final = 16 * 1024 * 1024  # a window half read within one round trip doubles up to this
WINDOW_GROWTH_MAX_BYTES: Final = 64 * 1024 * 1024  # all windows of one session together, beyond their first size
STREAMS_MAX: Final = 1024  # of one peer
SERVICE_MAX_BYTES: Final = 200  # a service name in UTF-8
CONNECT_TIMEOUT: Final = 15.0
GIVE_UP_GRACE: Final = 0.25  # for which a connect that is cancelled waits until the peer knows
TAKE_OVER_PATIENCE: Final = 1.0  # until the peer has answered where the session moves at once; twice the handshake, if longer
CLOSE_GRACE: Final = 2.0
SESSION_TICK: Final = 1.0  # how soon a peer that is no longer admitted is cut off, and how often the path is looked at
PING_ACTIVE: Final = 0.4  # of silence on a channel, while bytes move or wait for their acknowledgement
PING_IDLE: Final = 4.0  # with streams open and nothing moving
PING_DORMANT: Final = 15.0  # without a stream for a while: spares radios, and NATs remember for longer
PING_PAUSE: Final = 1.0  # between two that somebody asks for with `ping`, who has five seconds for each answer
PING_PATIENCE: Final = 5.0
PING_TIMEOUT: Final = 30.0  # of `ping --until-direct`: three tries for a direct path from the relay
SUSPECT_AFTER: Final = 1.0  # of silence, when active: another channel is looked for; 4 round trips where that is more
DEAD_ACTIVE: Final = 3.0  # of silence: nothing is written to the channel any more
DEAD_IDLE: Final = 9.0
DEAD_DORMANT: Final = 45.0
ACTIVE_FOR: Final = 5.0  # after the last byte moved
DORMANT_AFTER: Final = 45.0  # without a stream
USER_TIMEOUT: Final = 45.0  # TCP_USER_TIMEOUT: frees the descriptor; it runs for stopped peers too, so it is no judge
STARVED: Final = 1.0  # a timer that comes so late says that we stood still, not that the peer is silent
ACK_EVERY_BYTES: Final = 256 * 1024  # received; PONG brings one for the rest
RESUME_BUFFER_BYTES: Final = 16 * 1024 * 1024  # sent and not acknowledged, of one session
RESUME_BUFFER_MIN_BYTES: Final = 512 * 1024  # two of the largest batches: one on its way, one that is being sealed
RESUME_TIMEOUT: Final = 600.0  # how long a session waits for a new channel
RESUME_LINGER: Final = 30.0  # the same for a session without streams
TARGET_TIMEOUT: Final = 10.0  # connecting to what a service stands for
CLOCK_MIN: Final = 1_767_225_600.0  # seconds since 1970, 2026: a clock that shows less was never set, and ends no grant rightly
ACCESS_TICK: Final = 0.5  # how soon the streams of a grant end that was taken back
STREAMS_OF_SERVICE_MAX: Final = 200  # of one peer, unless the service says otherwise
LOOKUPS_MAX: Final = 64  # names looked up at a time for peers; each that a resolver does not answer holds a thread
LOOKUPS_OF_PEER_MAX: Final = 16  # of one peer
OPENS_PER_SECOND: Final = 200.0  # of one peer
OPENS_BURST: Final = 400.0
SESSIONS_OF_PEER_MAX: Final = 8  # that one peer has with us, by its own calls; first those end that wait for a channel
CAPABILITY_MAX_BYTES: Final = 1024  # of a signed grant: five services with names of the usual length take 200
CAPABILITIES_MAX: Final = 16  # that a peer can show in one session
ASK_TIMEOUT: Final = 30.0  # of the owner who is asked; then it is a no
ASK_PATIENCE: Final = 2 * ASK_TIMEOUT  # of who asks: others may be asked about first
ASK_STREAMS_MAX: Final = 16  # of one peer that wait for one answer
ASK_REFUSALS: Final = 3  # in a row, after which a peer can make no question appear
ASK_MUTE: Final = 600.0  # for so long
ASK_GRANT: Final = 3600.0  # of a grant "for an hour"

# --- reconnecting -----------------------------------------------------------------------------------------------------
RECONNECT_FIRST: Final = 0.2  # x 1.6 up to the cap, full jitter: no herd after a server's restart
RECONNECT_FACTOR: Final = 1.6
RECONNECT_CAP: Final = 10.0
RETRY_AFTER_MAX: Final = 60.0  # whatever an answer asks for: over UDP it may be forged
RECONNECT_QUICK: Final = 30.0  # of trying, in which the cap is lower: most servers are back by then
RECONNECT_QUICK_CAP: Final = 1.0
JOIN_PATIENCE: Final = 1.0  # for a channel that is about to carry the session, before the next one is asked for
REMIND_EVERY: Final = 3.0  # while a session waits for a channel: how often our own reachability is looked at
REMIND_RARELY: Final = 60.0  # the pause doubles up to this
FRUITLESS_CALLS: Final = 3  # answered without a channel while a session waits: then the registered port is replaced
RENEWAL_PAUSE: Final = 2.0  # between renewals of a registration because a path was silent
REDIAL_STAGGER: Final = 2.0  # after which a fresh attempt begins beside one that has not come up yet
REDIALS_AT_ONCE: Final = 3

# --- QUIC over a punched UDP port -------------------------------------------------------------------------------------
QUIC_DATAGRAM_BYTES: Final = 1200  # the most that QUIC may count on anywhere; nothing larger is tried, DF is set
QUIC_WINDOW_BYTES: Final = 4 * 1024 * 1024  # what may come before it is taken: a tenth of a second at the most it can move
QUIC_RECEIVE_BYTES: Final = 4 * 1024 * 1024  # of the kernel's memory for what has not been read yet
CONSENT_EVERY: Final = 5.0  # x 0.8 to 1.2 (RFC 7675): NATs remember UDP for 30 s
CONSENT_TIMEOUT: Final = 10.0  # without an answer, after which nothing but the question is sent
CONSENT_PROBE_PAUSE: Final = 1.0  # between questions to where the peer seems to have moved

# --- choosing between channels ----------------------------------------------------------------------------------------
PING_STANDBY: Final = 15.0  # x 0.8 to 1.2, of silence on a channel that waits for its turn: NATs remember for longer
SWITCH_PAUSE: Final = 10.0  # between two voluntary changes of path
SWITCH_PROOF: Final = 3.0  # for which a path must have been better
SWITCH_MEASUREMENTS: Final = 3  # in each of which it was
SWITCH_MARGIN: Final = 0.2  # by which it is, between equals: this share of the score of the one in use
SWITCH_MARGIN_MS: Final = 5.0  # and this much
FLAP_MEMORY: Final = 60.0  # a path that dies again within this has to wait
FLAP_WAIT: Final = 10.0  # the first time; twice as long each time
FLAP_WAIT_MAX: Final = 300.0
LOADED_BYTES: Final = 65_536  # a second, both ways: from there on a path's round trips tell of our own queue
CHANNELS_MAX: Final = 6  # of one session: the one in use, one standby of each kind, and what may be coming up
UPGRADE_FIRST: Final = 1.0  # on the relay, before a direct path is tried again; x 0.8 to 1.2
UPGRADE_FACTOR: Final = 3.0  # longer each time
UPGRADE_CAP: Final = 300.0

# --- pairing ----------------------------------------------------------------------------------------------------------
PAIRING_EXPIRES: Final = 600.0  # how long an invitation is good
PAIRING_PAUSE: Final = 2.0  # between two attempts of one source
PAIRING_FAILURES_MAX: Final = 3  # wrong codes so near to each other close pairing
PAIRING_FAILURES_WITHIN: Final = 600.0
PAIRING_SOURCES_MAX: Final = 1024  # whose last attempt is remembered; the oldest go first

# --- tunnels and ssh ----------------------------------------------------------------------------------------------------------
FORWARD_CONNECTIONS_MAX: Final = 1000  # of one forward; more clients wait in the kernel's backlog
FORWARD_BACKLOG: Final = 128  # of a forward's listener: clients that wait while streams open for others
ACCEPT_PAUSE: Final = 1.0  # after descriptors ran out; a forward lives long, its clients wait in the backlog
HOST_KEYS_SCAN_TIMEOUT: Final = 5.0  # ssh-keyscan of an sshd that is near the callee
HOST_KEYS_MEMORY: Final = 300.0  # how long a callee trusts its last scan, unless the files under /etc/ssh change
HOST_KEYS_MAX_BYTES: Final = 64 * 1024  # all host keys of one sshd; four keys and their certificates are under 10 KiB
SSH_LOGIN_TIMEOUT: Final = 30.0  # asyncssh's own is 120
SSH_WINDOW_BYTES: Final = 16 * 1024 * 1024  # of a channel; asyncssh's 2 MiB holds a long path down
SSH_PACKET_BYTES: Final = 65_536  # measured best with 32 KiB; from 128 KiB on half as slow again

# --- what a rendezvous server takes from one source ---------------------------------------------------------------------
# A source is an IPv4 address or a /64; a /48 has 16 times as much.  Loopback is not rationed: who is there can do worse.
SITE_FACTOR: Final = 16  # how much more a /48 may have than a /64
LIMITED_SOURCES_MAX: Final = 4096  # that are remembered at a time; the oldest go first
SOURCE_DATAGRAMS_PER_SECOND: Final = 20.0  # that show no cookie and no registration
SOURCE_DATAGRAMS_BURST: Final = 20.0
CHALLENGES_PER_SECOND: Final = 10_000.0  # 401s over UDP in all: under a flood the time is for who has a cookie, by TCP too
SOURCE_LINES_PER_SECOND: Final = 50.0  # over TCP, of all its connections
SOURCE_LINES_BURST: Final = 200.0  # its peers come back together after a restart
REGISTRATIONS_PER_MINUTE: Final = 30.0  # each costs a check of a signature
REREGISTRATIONS_PER_MINUTE: Final = 6.0  # of one key that owns its tag, beside those: many peers share a NAT
NEW_TAGS_PER_DAY: Final = 100.0  # times SITE_FACTOR and TAG_UNSEEN_DAYS: one /48 owns a quarter of TAGS_MAX at most
CALLS_PER_MINUTE: Final = 5.0  # of one source to one callee
CALLS_BURST: Final = 20.0  # a session whose path breaks again and again calls for each new one
CALLS_PER_SECOND_OF_CALLEE: Final = 20.0  # from all sources together
CALLS_PER_SECOND_OF_SOURCE: Final = 10.0  # to all callees together: a private server verifies who asks
CALLS_BURST_OF_SOURCE: Final = 100.0

PROBES_BACK_PER_SECOND: Final = 0.1  # of one source, from one of our addresses, over one transport
PROBES_BACK_BURST: Final = 12.0  # `netcheck` takes three, ten to watch mappings: datagrams are lost, and people look twice
PROBES_BACK_MAX: Final = 64  # connections back that are under way, a descriptor each
PROBE_BACK_PATIENCE: Final = 1.6  # kernels repeat a SYN after one second

# --- tags ---------------------------------------------------------------------------------------------------------------
TAGS_MAX: Final = 200_000  # owned at one server, about 0.5 KiB each
TAGS_OF_KEY_MAX: Final = 64
TAG_UNSEEN_DAYS: Final = 30  # after which a tag is free
TAG_SEEN_EVERY: Final = 3600.0  # how exactly that is known: less to write
FLOOD_ROOM_BYTES: Final = 8 * 2**20  # of waiting datagrams, as the kernel counts them: 10 000 of 176 bytes
SNAPSHOT_EVERY: Final = 5.0  # what a server that is killed forgets
RECALLS_PER_SECOND: Final = 500  # known addresses that a restarted server tells to register again
RECALL_MIN: Final = 0.2  # after which a peer does; random between the two: no herd
RECALL_MAX: Final = 2.0
RESTART_GRACE: Final = 5.0  # for which a peer of before the restart is "not yet there" rather than "offline"

# --- the relay ------------------------------------------------------------------------------------------------------------
RELAY_JOIN_TIMEOUT: Final = 10.0  # in which the other end of a call must come; an attempt is over by then
RELAY_HEAD_START: Final = 0.01  # of a direct path: one in the same network is up by then, and spares both the second handshake
RELAY_EARLY_BYTES: Final = 16 * 1024  # taken from who waits for the other end: a handshake's first flight is under 1 KiB
RELAY_BUFFER_BYTES: Final = 256 * 1024  # carried at a time, in one buffer for all; 64 KiB at a time cost a third more
RELAY_STALLED: Final = 2.0  # in which an end that bytes wait for acknowledges none
RELAY_IDLE: Final = 120.0  # without a byte either way; a session's standby pings every 15 s
GRANT_SKEW: Final = 300.0  # by which the clocks of a relay and of the rendezvous server that names it may differ
RELAY_SPARES_MAX: Final = 4  # relays that a peer keeps an idle connection to; the oldest go first
RELAY_SPARE_FAILURES: Final = 5  # in a row, until the next call: who names a relay need not be right
RELAY_TICK: Final = 0.25  # how exactly these are kept
RELAY_CIRCUITS_OF_KEY: Final = 16  # at a time
RELAY_CIRCUITS_OF_PAIR: Final = 4  # of two keys: who is let in by a machine cannot keep its other peers from the relay
RELAY_CIRCUITS_OF_SOURCE: Final = 8  # that an IPv4 address or a /64 has an end of
RELAY_CIRCUITS_MAX: Final = 1024  # two descriptors each
RELAY_QUOTA_BYTES: Final = 2**30  # of one key and day, both directions of all its circuits
RELAY_CALLS_MAX: Final = 20_000  # whose two keys are known, about 0.5 KiB each; the oldest go first
RELAY_ACCOUNTS_MAX: Final = 65_536  # keys that have used some of their quota; those go first whose day began first

# --- through what only lets the web through ---------------------------------------------------------------------------
WEB_PORT: Final = 443  # TCP, of a server: what every network lets out
WEB_FRAME_MAX_BYTES: Final = 512 * 1024  # of WebSocket; ours hold what one read has brought, 256 KiB
WEB_HEAD_MAX_BYTES: Final = 16 * 1024  # of an HTTP request or answer
WEB_HEAD_START: Final = 1.0  # of the server's own port: a lost SYN is repeated by then
WEB_STAGGER: Final = 0.5  # of TLS before WebSocket inside it, which few networks ask for
WEB_MEMORY: Final = 300.0  # for which what has worked last goes first
WEB_HANDSHAKES_MAX: Final = 256  # TLS handshakes under way at a server
WEB_HANDSHAKES_OF_SOURCE_MAX: Final = 16
WEB_HANDSHAKES_OF_SITE_MAX: Final = 128  # half of all: one /48 does not fill the listener

# --- TCP connections of the rendezvous server -------------------------------------------------------------------------
CONTROL_CONNECTIONS_MAX: Final = 60_000  # of 20 000 peers, with three each; 2.1 KiB and a descriptor each
CONTROL_OF_SOURCE_MAX: Final = 3072  # a peer has up to three; a provider's NAT has many peers
CONTROL_QUIET: Final = 0.25  # after which one that has said nothing counts as silent; peers speak at once
CONTROL_SILENT_OF_SOURCE_MAX: Final = 16
CONTROL_DROP_FROM: Final = 10  # silent ones of all sources, beyond which the next one costs one of them its place, by lot,
CONTROL_DROP_FIRST: Final = 0.3  # at first with this probability,
CONTROL_DROP_FULL: Final = 100  # and from here on always
CONTROL_LINE: Final = 12.0  # for a line once begun: 100 bytes a second
CONTROL_UNREAD: Final = 5.0  # for which a connection may leave what we sent unread
CONTROL_PENALTY: Final = 90.0  # for a source whose connections began with junk,
CONTROL_JUNK_BURST: Final = 10.0  # after so many: a web page asks a few times, behind the NAT of many peers,
CONTROL_JUNK_PER_MINUTE: Final = 10.0  # or ever more than so many
CONTROL_FIRST_LINE: Final = 5.0  # who says nothing by then is cut off
CONTROL_IDLE: Final = 150.0  # peers send a line every 25 s
CONTROL_KEEPALIVE: Final = 25.0  # NATs keep TCP mappings for longer; what it brings is a cookie, which is good for 30 s

# --- the network around us --------------------------------------------------------------------------------------------
SPARE_PAUSE: Final = 3.0  # before the next spare port where each new flow takes a port: those of the attempt come first
HABITS_DELAY: Final = 2.0  # from a port that is ready to questions about its NATs: who calls at once comes first
HABITS_MEMORY: Final = 6 * 3600.0  # a NAT changes its habits by its owner's hand
HABITS_NO_MEMORY: Final = 3600.0  # that SYNs do not cross: a server whose own SYNs do not get out makes it look so
HABITS_PLACES: Final = 8  # a server, and an outside address at which it sees us: some carriers take another one for each flow
ARRIVALS_MAX: Final = 8  # hosts from which connections come while a question about our NATs lasts: two are asked to
HABITS_AGAIN: Final = 600.0  # after questions that nobody has answered: to a server, ten machines of one address are one
OPENER_TTL_MEMORY: Final = 300.0  # the number of our own NATs changes with the network, not from call to call
CONTROL_GRACE: Final = 3.5  # a server that has answered over UDP gets so much longer over TCP: two lost SYNs cost 3 s
FAMILY_HEAD_START: Final = 0.25  # of IPv4 before IPv6, where a server's name has both (RFC 8305 5)
FAMILY_PATIENCE: Final = 1.5  # until one of the two has answered; then IPv4 is taken to be what there is
UDP_GRACE: Final = 0.25  # and over UDP, once it has answered over TCP: two lost datagrams; 2 round trips where those are more
NETWORK_TICK: Final = 1.0  # how often clocks are compared
NETWORK_SETTLE: Final = 0.2  # news of addresses come in bursts: a change of uplink is a dozen messages
NETWORK_POLL: Final = 2.0  # where nobody tells of changes
SLEEP_MIN: Final = 2.0  # between two ticks, by the difference of CLOCK_BOOTTIME and CLOCK_MONOTONIC
SLEEP_MIN_BY_WALL_CLOCK: Final = 5.0  # the same where only the wall clock tells, which is also set by hand and by NTP
LOOP_LATE: Final = 1.0  # a tick that comes so late without sleep: something blocks the loop

# --- port mapping -----------------------------------------------------------------------------------------------------
PORTMAP_PORT: Final = 5351  # UDP, of the router, for PCP and NAT-PMP alike (RFC 6886, RFC 6887)
PORTMAP_NEWS_PORT: Final = 5350  # UDP, of ours: routers multicast there that they have restarted
PORTMAP_LIFETIME: Final = 7200  # asked for; renewed at half of what is granted (RFC 6886 3.3)
PORTMAP_LIFETIME_MAX: Final = 86_400  # believed at most: what a router promises for longer is asked for again anyway
PORTMAP_FIRST: Final = 0.25  # until a request is repeated, then twice as long; a local network answers in milliseconds
PORTMAP_TRIES: Final = 3  # so a router that says nothing is left after 1.75 s, for each of the two protocols
PORTMAP_PAUSE: Final = 5.0  # between two requests for one port, however little time is granted, however often a router restarts
PORTMAP_NEWS_SPREAD: Final = 5.0  # at most, by lot: so long after such news a router is asked (RFC 6887 14.1.3)
PORTMAP_AGAIN: Final = 1800.0  # after which a router that refused, or was silent, is asked again
PORTMAP_AGAIN_SOON: Final = 300.0  # the same where the router says that it has no connection itself: that may pass
PORTMAP_AGAIN_MIN: Final = 30.0  # PCP says itself how long a refusal lasts; no sooner than this
PORTMAP_CLOSE: Final = 2.0  # for taking mappings back; what a router leaves unanswered ends by its lifetime
IGD_SEARCH: Final = 1.5  # for answers to a search for UPnP routers, which may put them off by the second that we allow
IGD_TIMEOUT: Final = 3.0  # for one question over HTTP
IGD_ANSWER_MAX_BYTES: Final = 64 * 1024  # head and body; descriptions of routers are 3 to 20 KiB
IGD_ELEMENTS_MAX: Final = 4096  # of one XML text
IGD_DEPTH_MAX: Final = 32
IGD_TRIES: Final = 4  # external ports, before a router with all of them taken counts as one that refuses

# --- peers in the same network, without a server ------------------------------------------------------------------------
LAN_PATIENCE: Final = 4.0  # until nobody is taken to be there: three questions by multicast, of which Wi-Fi loses many
LAN_GRACE: Final = 0.5  # for a neighbour, after a call with a server's help has failed: discovery takes up to 0.25
LAN_PROBES: Final = 3  # to one announced address, which anybody may have made up
LAN_PROBE_FIRST: Final = 0.1  # then x 2; the last one is waited for as long again
LAN_TARGETS_AT_ONCE: Final = 16
LAN_TARGETS_MAX: Final = 64  # of one call; 16 of one service
LAN_STAGGER: Final = 1.0  # after which the next address that answered is tried beside one that has not come to a channel
LAN_MEETINGS_MAX: Final = 4  # at once
LAN_DIAL_PATIENCE: Final = 2.5  # of TCP to who has just answered: one lost SYN costs 1 s
LAN_SERVICES_MAX: Final = 1024  # announced ones that are remembered; the oldest go first
LAN_OPEN_PAD_BYTES: Final = 160  # t=32 before it is keyed: its answer is 148 and gives a conkey to who may not have asked
LAN_CONKEY_TTL: Final = 10.0
LAN_CONKEYS_MAX: Final = 64  # that are good at one time
LAN_CONKEYS_OF_SOURCE_MAX: Final = 8
LAN_DATAGRAMS_PER_SECOND: Final = 20.0  # of one source, before anything of them is read
LAN_DATAGRAMS_BURST: Final = 64.0
