"""Host keys as text: what is taken from elsewhere, what is given to ssh."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.ssh.knownhosts import host_keys_service, known_hosts_file, known_hosts_lines, parse_host_keys, tag_of_host


def key(kind: str = "ssh-ed25519", fill: int = 7) -> str:
    blob = struct.pack("!I", len(kind)) + kind.encode() + struct.pack("!I", 32) + bytes([fill]) * 32
    return f"{kind} {base64.b64encode(blob).decode()}"


ED, RSA = key(), key("ssh-rsa", 9)


@pytest.mark.parametrize(
    "text",
    [
        f"{ED}\n{RSA}\n",
        f"{ED} root@nas\r\n{RSA} a comment of words\n",
        f"# nas:22 SSH-2.0-OpenSSH_9.2p1\nnas {ED}\n[nas]:2222 {RSA}\n",
        f"{ED}\n{ED}\n\n   {RSA}   \n",
    ],
)
def test_keys_are_read_from_files_scans_and_peers(text: str) -> None:
    assert parse_host_keys(text) == (ED, RSA)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        f"ssh-rsa {ED.split()[1]}",  # the blob calls itself something else
        f"@cert-authority * {ED}",
        f"@revoked nas {ED}",
        f"a b {ED}",
        f"ssh-dss {key('ssh-dss').split()[1]}",
        f"ssh-ed25519-cert-v01@openssh.com {key('ssh-ed25519-cert-v01@openssh.com').split()[1]}",
    ],
)
def test_whatever_else_a_line_says_is_left_out(line: str) -> None:
    assert parse_host_keys(line) == ()


@given(st.text())
def test_no_text_becomes_more_than_lines_of_type_and_base64(text: str) -> None:
    for line in parse_host_keys(f"{text}\n{ED}\n"):
        kind, blob = line.split(" ")
        assert kind.isascii()
        assert base64.b64decode(blob, validate=True)


def test_a_line_vouches_for_the_very_name_that_ssh_looks_for() -> None:
    assert known_hosts_lines("[nas.p2p]:2222", (ED, RSA)) == (f"[nas.p2p]:2222 {ED}", f"[nas.p2p]:2222 {RSA}")


def test_a_file_for_an_old_ssh_names_every_tag_on_every_port() -> None:
    assert known_hosts_file({"nas": (ED, RSA), "pi": ()}) == f"nas.p2p,[nas.p2p]:* {ED}\nnas.p2p,[nas.p2p]:* {RSA}\n"


@pytest.mark.parametrize("host", ["nas", "nas.p2p", "NAS.p2p", "NAS.P2P", "[nas.p2p]:2222", "[nas]:22"])
def test_the_tag_is_found_in_every_form_in_which_ssh_writes_a_host(host: str) -> None:
    assert tag_of_host(host) == "nas"


def test_the_reserved_service_is_named_after_the_one_it_is_about() -> None:
    assert host_keys_service("box") == "ssh-host-keys/box"
