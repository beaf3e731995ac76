"""The laboratory itself: who reaches whom, as whom; programs and threads live where they should; captures are complete."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2ptunnel.errors import ConfigError, LaboratoryError
from p2ptunnel.testing.natlab import Host, Lab
from p2ptunnel.testing.natlab import capture as capture_module
from p2ptunnel.types import Address

PATIENCE = 5.0
SILENCE = 0.2


def udp(host: Host, address: Address = ("0.0.0.0", 0)) -> socket.socket:
    made = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(address)
    made.settimeout(PATIENCE)
    return made


def ask(client: socket.socket, server: socket.socket) -> Address:
    """Send a datagram there and back; return the address that the server saw."""
    client.sendto(b"?", server.getsockname())
    _, seen = server.recvfrom(100)
    server.sendto(b"!", seen)
    assert client.recvfrom(100) == (b"!", server.getsockname())
    return seen


def is_silent(receiver: socket.socket) -> bool:
    receiver.settimeout(SILENCE)
    try:
        receiver.recv(100)
    except TimeoutError:
        return True
    finally:
        receiver.settimeout(PATIENCE)
    return False


# --- who reaches whom ---------------------------------------------------------------------------------------------------


def test_the_server_has_two_addresses_and_sees_outside_addresses(natlab: Lab) -> None:
    site = natlab.site("pr", hosts=2)
    assert [host.ip for host in site.hosts] == ["192.168.1.2", "192.168.1.3"]
    assert natlab.server.ips == ["203.0.113.1", "203.0.113.2"]
    for host in site.hosts:
        for address in natlab.server.ips:
            with udp(natlab.server, (address, 0)) as server, udp(host) as client:
                assert ask(client, server)[0] == site.wan_address == "198.51.100.1"


def arrives_at_once(sender: Host, receiver: Host, address: str) -> bool:
    """Send one datagram; the kernel would try again, or wake up, after a second."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with receiver.socket(family, socket.SOCK_DGRAM) as server, sender.socket(family, socket.SOCK_DGRAM) as client:
        server.bind((address, 0))
        client.sendto(b"?", server.getsockname())
        return bool(select.select([server], [], [], 0.5)[0])


def test_the_first_packet_of_a_new_machine_arrives_at_once(natlab: Lab) -> None:
    assert arrives_at_once(natlab.server, natlab.inet, natlab.inet.ip)
    for kind in ("pub", "pr", "noSO"):
        assert arrives_at_once(natlab.site(kind).host, natlab.server, natlab.server.ip)


def test_the_first_packet_between_neighbours_arrives_at_once(natlab: Lab) -> None:
    site = natlab.site("pr")
    assert all(arrives_at_once(site.add_host(), site.host, site.host.ip) for _ in range(20))


def test_the_first_packet_over_ipv6_arrives_at_once(natlab: Lab) -> None:
    site = natlab.site("v6_drop", hosts=0)
    assert natlab.server.ip6 is not None
    assert all(arrives_at_once(site.add_host(), natlab.server, natlab.server.ip6) for _ in range(10))


@pytest.mark.parametrize("kind", ["pr", "noSO"])
def test_neighbours_reach_each_other_without_their_router(natlab: Lab, kind: str) -> None:
    first, second = natlab.site(kind, hosts=2).hosts
    with udp(first, (first.ip, 0)) as server, udp(second) as client:
        assert ask(client, server)[0] == second.ip


@pytest.mark.parametrize("kind", ["pr", "noSO"])
def test_neighbours_hear_multicast_and_others_do_not(natlab: Lab, kind: str) -> None:
    here, elsewhere = natlab.site(kind, hosts=2), natlab.site(kind)
    group = ("224.0.0.251", 5353)
    with udp(here.hosts[1], group) as neighbour, udp(elsewhere.host, group) as stranger, udp(here.host) as sender:
        for host, member in ((here.hosts[1], neighbour), (elsewhere.host, stranger)):
            membership = socket.inet_aton(group[0]) + socket.inet_aton(host.ip)
            member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(here.host.ip))
        sender.sendto(b"who is there", group)
        assert neighbour.recv(100) == b"who is there"
        assert is_silent(stranger)


def test_ipv6_reaches_the_server_and_low_hop_limits_are_heard_of(natlab: Lab) -> None:
    host = natlab.site("v6_drop").host
    assert (host.ip6, natlab.server.ip6) == ("2001:db8:1::2", "2001:db8:ffff::1")
    with natlab.server.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind((natlab.server.ip6, 0))
        server.settimeout(PATIENCE)
        with host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.connect(server.getsockname())
            client.send(b"far")
            assert server.recvfrom(100)[1][0] == host.ip6
            client.settimeout(PATIENCE)
            client.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 2)
            client.send(b"near")
            with pytest.raises(OSError, match="No route to host"):
                client.recv(1)


@pytest.mark.parametrize(("kind", "ttl"), [("pr", 1), ("pr", 2), ("noSO", 1), ("noSO", 2), ("pub", 1)])
def test_every_packet_whose_ttl_ends_is_answered(natlab: Lab, kind: str, ttl: int) -> None:
    with udp(natlab.site(kind).host) as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        client.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sent = heard = 0
        while sent < 300:
            with contextlib.suppress(OSError):  # an error that is waiting is told to whoever sends next
                client.sendto(b"?", (natlab.server.ip, 9))
                sent += 1
        errors = select.poll()
        errors.register(client, 0)  # errors are always waited for
        while heard < sent and errors.poll(PATIENCE * 1000):
            client.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            heard += 1
    assert heard == sent


def test_two_laboratories_know_nothing_of_each_other(natlab: Lab) -> None:
    with Lab() as other:
        first, second = natlab.site("pr"), other.site("pr")
        assert first.wan_address == second.wan_address
        address = (natlab.server.ip, 5000)
        with udp(natlab.server, address) as here, udp(other.server, address) as there:
            with udp(first.host) as client:
                ask(client, here)
            assert is_silent(there)
            with udp(second.host) as client:
                ask(client, there)


def test_nothing_of_this_machine_is_linked_to_the_laboratory() -> None:
    before = socket.if_nameindex()
    with Lab() as lab, socket.create_server(("127.0.0.1", 0)) as ours:
        host = lab.site("pr", delay=0.001).host
        assert socket.if_nameindex() == before
        with lab.inet.inside():
            assert [name for _, name in socket.if_nameindex()] == ["lo", "server", "s1"]
        for machine in (host, lab.inet, lab.server):
            with machine.socket() as client:
                client.settimeout(PATIENCE)
                with pytest.raises(OSError, match=r"refused"):
                    client.connect(ours.getsockname())
        with lab.inet.socket() as client, pytest.raises(OSError, match="unreachable"):
            client.connect(("192.0.2.1", 80))


def test_sites_may_have_one_and_the_same_network_and_an_address_of_their_own(natlab: Lab) -> None:
    sites = [natlab.site("pr", lan="192.168.1.0/24", wan_address=f"198.51.101.{n}") for n in (7, 8)]
    assert [site.host.ip for site in sites] == ["192.168.1.2"] * 2
    with udp(natlab.server, (natlab.server.ip, 0)) as server:
        for site in sites:
            with udp(site.host) as client:
                assert ask(client, server)[0] == site.wan_address


@pytest.mark.parametrize(("above", "below"), [("pr", "pr"), ("pr", "noSO"), ("cgn", "pr"), ("cgn", "cgn")])
def test_routers_stand_above_each_other_in_any_order(natlab: Lab, above: str, below: str) -> None:
    carrier = natlab.site(above, hosts=0)
    homes = [natlab.site(below, upstream=carrier, delay=0.001) for _ in range(2)]
    with udp(natlab.server, (natlab.server.ip, 0)) as server:
        for home in homes:
            with udp(home.host) as client:
                assert ask(client, server)[0] == carrier.wan_address
    assert homes[0].wan_address.startswith("100.64.0.")


def test_a_kernel_s_timeouts_are_those_of_its_kind(natlab: Lab) -> None:
    router = natlab.site("pr", udp_timeout=5, tcp_opening_timeout=6, tcp_timeout=7).router
    names = ("udp_timeout", "udp_timeout_stream", "tcp_timeout_syn_sent", "tcp_timeout_established")
    assert [router.namespace.setting(f"netfilter/nf_conntrack_{name}") for name in names] == ["5", "5", "6", "7"]


# --- what a router forgets and what it keeps ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pubfw", "fc", "ar", "pr", "noSO"])
def test_a_flush_closes_the_holes(natlab: Lab, kind: str) -> None:
    site = natlab.site(kind)
    with udp(natlab.server, (natlab.server.ip, 0)) as server, udp(site.host) as client:
        seen = ask(client, server)
        server.sendto(b"in", seen)
        assert client.recv(100) == b"in"
        assert kind == "pubfw" or site.stats().mappings == 1
        site.flush()
        assert site.stats().mappings == 0
        server.sendto(b"in", seen)
        assert is_silent(client)


def test_a_bare_host_has_nothing_to_flush(natlab: Lab) -> None:
    site = natlab.site("pub")
    site.flush()
    with udp(natlab.server, (natlab.server.ip, 0)) as server, udp(site.host) as client:
        assert ask(client, server)[0] == site.wan_address


@pytest.mark.parametrize("kind", ["pr", "noSO"])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_static_mapping_leads_to_the_host_it_names(natlab: Lab, kind: str, transport: str) -> None:
    site = natlab.site(kind, hosts=2)
    site.map_port(transport, 4000, 22, site.hosts[1])  # type: ignore[arg-type]
    site.map_port(transport, 5000, 22)  # type: ignore[arg-type]
    for port, host in ((4000, site.hosts[1]), (5000, site.host)):
        with host.inside(), natlab.server.socket() as client:
            if transport == "tcp":
                with socket.create_server((host.ip, 22)) as listener:
                    client.settimeout(PATIENCE)
                    client.connect((site.wan_address, port))
                    connection, _ = listener.accept()
                    connection.close()
            else:
                with udp(host, (host.ip, 22)) as receiver, udp(natlab.server, (natlab.server.ip, 0)) as sender:
                    sender.sendto(b"?", (site.wan_address, port))
                    receiver.sendto(b"!", receiver.recvfrom(100)[1])
                    assert sender.recvfrom(100) == (b"!", (site.wan_address, port))


# --- programs and threads -----------------------------------------------------------------------------------------------


def test_a_program_lives_in_its_host(natlab: Lab) -> None:
    host = natlab.site("pr").host
    code = "import socket, sys; print(sorted(n for _, n in socket.if_nameindex()), sys.stdin.read())"
    result = host.run([sys.executable, "-c", code], input="and reads")
    assert result.stdout == "['eth0', 'lo'] and reads\n"


def test_a_program_that_fails_raises_unless_it_may(natlab: Lab) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('no')"]
    with pytest.raises(subprocess.CalledProcessError) as raised:
        natlab.server.run(failing)
    assert (raised.value.returncode, raised.value.stderr) == (1, "no\n")
    assert natlab.server.run(failing, check=False).returncode == 1


def test_a_program_that_takes_too_long_is_killed(natlab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        natlab.server.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    assert programs_in(natlab.server) == []


def test_programs_and_their_children_end_with_the_laboratory() -> None:
    with Lab() as lab:
        parent = lab.server.popen(["sh", "-c", "sleep 60 & echo ready; wait"], stdout=subprocess.PIPE)
        silent = lab.server.popen(["sleep", "60"], text=False, stdin=subprocess.PIPE)
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        pids = programs_in(lab.server)
        assert len(pids) == 3
        processes = [os.pidfd_open(pid) for pid in pids]
    try:
        assert (parent.returncode, silent.returncode) == (-signal.SIGKILL, -signal.SIGKILL)
        assert all(select.select([process], [], [], PATIENCE)[0] for process in processes)
    finally:
        for process in processes:
            os.close(process)


def test_a_program_outlives_the_thread_that_started_it(natlab: Lab) -> None:
    def start() -> subprocess.Popen[str]:
        program = natlab.server.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert program.stdin is not None
        assert program.stdout is not None
        print("it runs", file=program.stdin, flush=True)
        assert program.stdout.readline() == "it runs\n"
        return program

    started = natlab.server.thread(start)
    program = started.result(PATIENCE)
    started.join()
    assert program.communicate("still", timeout=PATIENCE)[0] == "still"


def test_a_thread_lives_in_its_host_and_hands_over_what_it_returns(natlab: Lab) -> None:
    host = natlab.site("pr").host

    async def names() -> list[str]:
        return await asyncio.to_thread(lambda: sorted(name for _, name in socket.if_nameindex()))

    before = socket.if_nameindex()
    assert host.thread(asyncio.run, names()).result(PATIENCE) == ["eth0", "lo"]
    assert socket.if_nameindex() == before


def test_a_thread_hands_over_what_it_raises(natlab: Lab) -> None:
    with pytest.raises(ZeroDivisionError):
        natlab.server.thread(lambda: 1 // 0).result(PATIENCE)
    gate = threading.Event()
    waiting = natlab.server.thread(gate.wait)
    with pytest.raises(TimeoutError):
        waiting.result(0.01)
    gate.set()
    assert waiting.result(PATIENCE)


def test_one_event_loop_owns_sockets_of_all_hosts(natlab: Lab) -> None:
    site = natlab.site("pr", delay=0.001)

    async def talk() -> bytes:
        loop = asyncio.get_running_loop()
        with natlab.server.socket() as listener, site.host.socket() as client:
            listener.bind((natlab.server.ip, 0))
            listener.listen()
            for end in (listener, client):
                end.setblocking(False)
            (connection, _), _ = await asyncio.gather(
                loop.sock_accept(listener), loop.sock_connect(client, listener.getsockname())
            )
            with connection:
                await loop.sock_sendall(connection, b"hello")
                return await loop.sock_recv(client, 100)

    assert asyncio.run(asyncio.wait_for(talk(), PATIENCE)) == b"hello"


# --- captures -----------------------------------------------------------------------------------------------------------


def test_a_capture_has_every_packet_of_its_block_and_no_other(natlab: Lab, tmp_path: Path) -> None:
    site, file = natlab.site("shift"), tmp_path / "packets.pcap"
    with udp(natlab.server, (natlab.server.ip, 9999)) as server, udp(site.host) as client:
        client.sendto(b"before", server.getsockname())
        server.recv(100)
        with natlab.capture(filter="udp port 9999", write=file) as outside, natlab.capture(site) as inside:
            for _ in range(2000):
                client.sendto(b"during", server.getsockname())
                server.recv(100)  # or a busy machine would drop some before they are seen
        client.sendto(b"after", server.getsockname())
        port = client.getsockname()[1]
    arrivals = [line for line in outside.lines if " In " in line]
    assert len(arrivals) == 2000
    assert all(f"{site.wan_address}.{port ^ 0x0A5A} > 203.0.113.1.9999: UDP, length 6" in line for line in arrivals)
    assert sum(f"{site.host.ip}.{port} > 203.0.113.1.9999" in line for line in inside.lines) == 2 * 2000  # port and bridge
    assert outside.path == file
    assert file.stat().st_size > 2000 * 28


def test_a_capture_on_a_host_sees_its_own_packets(natlab: Lab) -> None:
    site = natlab.site("noSO")
    with natlab.capture(site, "icmp") as seen, site.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        client.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        client.connect((natlab.server.ip, 9))
        client.send(b"?")
        client.settimeout(PATIENCE)
        with pytest.raises(OSError, match="No route to host"):
            client.recv(1)
    [line] = seen.lines
    assert "192.168.1.1 > 192.168.1.2: ICMP time exceeded in-transit" in line


def test_a_wrong_filter_is_refused_in_tcpdump_s_words(natlab: Lab) -> None:
    with pytest.raises(LaboratoryError, match=r"tcpdump says .*syntax error"), natlab.capture(filter="port port"):
        pytest.fail("the block has begun")


# --- misuse -------------------------------------------------------------------------------------------------------------


def test_a_capture_that_lost_packets_says_so(natlab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "_BUFFER_KIB", 2048)

    def flood() -> None:
        whole = natlab.capture(natlab.server, "udp port 9999", snapshot_bytes=0)  # the largest: slots for eight packets
        with whole, udp(natlab.server) as sender:
            for _ in range(5000):
                sender.sendto(b"?", (natlab.server.ip, 9999))

    with pytest.raises(LaboratoryError, match=r"incomplete: \d+ packets were too many"):
        flood()


def test_a_capture_that_hangs_says_so(natlab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "_PATIENCE", 0.1)

    def hang() -> None:
        with natlab.capture():
            [tcpdump] = programs_in(natlab.inet)
            os.kill(tcpdump, signal.SIGSTOP)

    with pytest.raises(LaboratoryError, match="tcpdump on inet has stopped recording"):
        hang()


def test_what_is_raised_in_a_capture_s_block_comes_out(natlab: Lab) -> None:
    with pytest.raises(ZeroDivisionError), natlab.capture():
        _ = 1 // 0
    assert programs_in(natlab.inet) == []


def test_without_tcpdump_there_is_no_capture(natlab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaboratoryError, match="the program tcpdump is not on the PATH"), natlab.capture():
        pytest.fail("the block has begun")


def test_nft_s_words_are_in_the_error(natlab: Lab) -> None:
    with pytest.raises(LaboratoryError, match=r"nft on server says .*syntax error"):
        natlab.server.nft("add chain nonsense")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kind": "pigeon"}, "there is no kind 'pigeon'"),
        ({"kind": "pr", "colour": "red"}, "a kind has no colour"),
        ({"kind": "pub", "hosts": 2}, "is one machine with one address"),
        ({"kind": "pr", "loss": 2.0}, "no line can be like this: loss is a share"),
        ({"kind": "v6_drop", "upstream": "cgn"}, "cannot have IPv6 below a user-space NAT"),
    ],
)
def test_a_site_that_cannot_be_is_refused(natlab: Lab, arguments: dict[str, object], text: str) -> None:
    chosen = {key: natlab.site(str(value), hosts=0) if key == "upstream" else value for key, value in arguments.items()}
    with pytest.raises(ConfigError, match=text):
        natlab.site(**chosen)  # type: ignore[arg-type]


def test_what_a_site_has_not_it_says(natlab: Lab) -> None:
    bare, plain = natlab.site("pub"), natlab.site("pr")
    with pytest.raises(ConfigError, match="pub-1 has no Linux router"):
        _ = bare.router
    with pytest.raises(ConfigError, match="pub-1 has no router for a site below it"):
        natlab.site("pr", upstream=bare)
    with pytest.raises(ConfigError, match="pub-1 has no router that could map tcp port 80"):
        bare.map_port("tcp", 80, 80)
    with pytest.raises(ConfigError, match="the line of pr-2 is a plain cable") as raised:
        plain.link(delay=0.1)
    assert "link=True" in raised.value.hint


def test_an_address_taken_twice_is_refused(natlab: Lab) -> None:
    natlab.site("pr", wan_address="198.51.100.77")
    with pytest.raises(LaboratoryError, match=r"pr-2 cannot be built: .*File exists"):
        natlab.site("pr", wan_address="198.51.100.77")


def test_a_laboratory_has_room_for_so_many_sites_and_no_more(natlab: Lab) -> None:
    natlab._numbers = itertools.count(251)
    with pytest.raises(LaboratoryError, match="a laboratory has at most 250 sites"):
        natlab.site("pub")


def test_where_none_can_be_built_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.testing.natlab.lab.capable", lambda: "no namespaces today")
    with pytest.raises(LaboratoryError, match="the laboratory does not work: no namespaces today"):
        Lab()


def test_machines_and_sites_say_who_they_are(natlab: Lab) -> None:
    site = natlab.site("pr", name="home")
    assert repr(site) == "<KernelSite home 198.51.100.1>"
    assert repr(site.host) == "<Host home-2 192.168.1.2>"
    assert repr(site.host.namespace) == "<Namespace home-2>"


def programs_in(host: Host) -> list[int]:
    """The processes that live in its network."""
    inode = os.fstat(host.namespace.descriptor).st_ino
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if (process / "ns/net").stat().st_ino == inode:
                found.append(int(process.name))
    return found


def test_no_way_between_two_sites_is_one_router_of_the_internet_long(natlab: Lab) -> None:
    """A packet that is to die outside its own network does not come as far as the other's edge."""
    home, other = natlab.site("pr"), natlab.site("pub")
    with other.host.socket(type=socket.SOCK_DGRAM) as far, home.host.socket(type=socket.SOCK_DGRAM) as near:
        far.bind((other.host.ip, 5000))
        far.settimeout(5)
        for ttl in (3, 4):  # our router, the internet's, the silent one
            near.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            near.sendto(b"%d" % ttl, (other.host.ip, 5000))
        assert far.recv(10) == b"4"
