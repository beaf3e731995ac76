"""The profile on disk: who may read it, what a damaged or foreign file comes to, and that a write is whole or nothing."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec.structs import replace

from p2ptunnel.errors import (
    ConfigError,
    InsecureKeyFileError,
    InvalidSpecError,
    InvalidTagError,
    KeyKnownError,
    NameTakenError,
    NoSuchPeerError,
    PeerKeyChangedError,
    StoreError,
)
from p2ptunnel.identity.capability import issue
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import IssuedTicket, PeerStore, PinnedPeer, Profile

LAPTOP, PHONE = (Identity.from_seed(bytes([n]) * 32).public for n in (1, 2))
OURS = Identity.from_seed(bytes([3]) * 32)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    return Profile(tmp_path / "profile")


@pytest.fixture
def store(tmp_path: Path) -> PeerStore:
    return PeerStore(tmp_path / "peers.toml")


@pytest.fixture
def no_umask() -> Generator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def plain(peer: PinnedPeer | None) -> PinnedPeer | None:
    """A peer without the moment at which it was pinned."""
    return None if peer is None else replace(peer, since=0.0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- where ------------------------------------------------------------------------------------------------------------


def test_the_profile_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("P2PTUNNEL_PROFILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Profile().directory == tmp_path / ".config" / "p2ptunnel"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert Profile().directory == tmp_path / "xdg" / "p2ptunnel"
    monkeypatch.setenv("P2PTUNNEL_PROFILE", "~/other")
    assert Profile().directory == tmp_path / "other"
    assert Profile(tmp_path / "given").directory == tmp_path / "given"


# --- the key file -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_umask")
def test_the_first_use_makes_an_identity_that_only_its_owner_can_read(profile: Profile) -> None:
    identity = profile.identity()
    path = profile.directory / "identity.key"
    assert (mode(profile.directory), mode(path)) == (0o700, 0o600)
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert profile.identity().public == identity.public
    assert sorted(child.name for child in profile.directory.iterdir()) == [".lock", "identity.key"]


def test_processes_that_come_first_together_share_one_identity(profile: Profile) -> None:
    code = "import sys; from p2ptunnel.identity.store import Profile; print(Profile(sys.argv[1]).identity().public)"
    command = [sys.executable, "-c", code, str(profile.directory)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert {process.communicate()[0].strip() for process in running} == {str(profile.identity().public)}


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_key_that_others_could_read_or_replace_is_refused(profile: Profile, bits: int) -> None:
    profile.identity()
    path = profile.directory / "identity.key"
    path.chmod(bits)
    with pytest.raises(InsecureKeyFileError) as error:
        profile.identity()
    assert str(error.value) == f"{path}: its mode is {bits:04o}: others could read or replace it"
    assert error.value.hint == f"chmod 600 {path}"
    subprocess.run(error.value.hint, shell=True, check=True)
    profile.identity()


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777])
def test_a_directory_in_which_others_could_put_a_key_is_refused(profile: Profile, bits: int) -> None:
    profile.identity()
    profile.directory.chmod(bits)
    with pytest.raises(InsecureKeyFileError) as error:
        profile.identity()
    assert error.value.hint == f"chmod 700 {profile.directory}"
    subprocess.run(error.value.hint, shell=True, check=True)
    profile.identity()


def test_a_directory_that_others_can_only_look_into_is_fine(profile: Profile) -> None:
    profile.directory.mkdir(mode=0o755)
    profile.identity()


def test_a_symlink_in_the_keys_place_is_refused(profile: Profile, tmp_path: Path) -> None:
    identity = profile.identity()
    path = profile.directory / "identity.key"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InsecureKeyFileError, match="it is a symbolic link") as error:
        profile.identity()
    subprocess.run(error.value.hint.partition(": ")[2], shell=True, check=True)
    assert profile.identity().public == identity.public


@as_root
def test_a_key_of_another_user_is_refused(profile: Profile) -> None:
    profile.identity()
    path = profile.directory / "identity.key"
    os.chown(path, 65534, 65534)
    with pytest.raises(InsecureKeyFileError, match="it belongs to another user") as error:
        profile.identity()
    assert error.value.hint == f"sudo chown 0 {path}"


@as_root
def test_a_directory_of_another_user_is_refused(profile: Profile) -> None:
    profile.directory.mkdir(mode=0o700)
    os.chown(profile.directory, 65534, 65534)
    with pytest.raises(InsecureKeyFileError, match="it belongs to another user"):
        profile.identity()


def other_key() -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return X25519PrivateKey.generate().private_bytes(encoding, form, serialization.NoEncryption())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not an unencrypted PKCS8 key"),
        (b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "it is not an unencrypted PKCS8 key"),
        (other_key(), "it is not an Ed25519 key"),
    ],
)
def test_a_damaged_key_is_named_and_never_replaced(profile: Profile, content: bytes, reason: str) -> None:
    profile.identity()
    path = profile.directory / "identity.key"
    path.write_bytes(content)
    with pytest.raises(StoreError) as error:
        profile.identity()
    assert str(error.value) == f"{path}: {reason}"
    assert path.read_bytes() == content


def test_an_encrypted_key_is_not_asked_about_and_not_replaced(profile: Profile) -> None:
    encryption = serialization.BestAvailableEncryption(b"passphrase")
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    profile.directory.mkdir(mode=0o700)
    path = profile.directory / "identity.key"
    path.write_bytes(Identity.generate().private_key.private_bytes(encoding, form, encryption))
    path.chmod(0o600)
    with pytest.raises(StoreError, match="it is not an unencrypted PKCS8 key"):
        profile.identity()


def test_a_profile_that_is_no_directory_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Profile(tmp_path / "file").identity()
    with pytest.raises(StoreError):
        Profile(tmp_path / "file" / "below").identity()


# --- peers ------------------------------------------------------------------------------------------------------------


def test_a_peer_is_kept_with_its_key_services_and_host_keys(store: PeerStore, tmp_path: Path) -> None:
    store.add("home.nas", LAPTOP, ("ssh", "日記"))
    store.set_ssh_host_keys("home.nas", "ssh", ("ssh-ed25519 AAAAC3", "ssh-rsa AAAAB3"))
    expected = PinnedPeer("home.nas", LAPTOP, ("ssh", "日記"), {"ssh": ("ssh-ed25519 AAAAC3", "ssh-rsa AAAAB3")})
    for known in (store, PeerStore(tmp_path / "peers.toml")):
        assert plain(known.get("home.nas")) == expected
        assert plain(known.by_key(LAPTOP)) == expected
        assert known.all() == (known.get("home.nas"),)
    assert mode(tmp_path / "peers.toml") == 0o600


def test_a_file_by_hand_is_read(store: PeerStore, tmp_path: Path) -> None:
    (tmp_path / "peers.toml").write_text(f'[peers.laptop]\nkey = "{LAPTOP}"\nservices = ["ssh"]\n')
    assert store.get("laptop") == PinnedPeer("laptop", LAPTOP, ("ssh",))


def test_adding_again_merges_services_and_another_key_is_refused(store: PeerStore) -> None:
    store.add("laptop", LAPTOP, ("ssh",))
    assert store.add("laptop", LAPTOP, ("web", "ssh")).services == ("ssh", "web")
    with pytest.raises(NameTakenError) as error:
        store.add("laptop", PHONE, ("files",))
    assert (error.value.tag, error.value.pinned) == ("laptop", str(LAPTOP))
    assert str(error.value) == f"laptop is known with another key, {str(LAPTOP)[:12]}…"
    assert isinstance(error.value, PeerKeyChangedError)
    assert plain(store.get("laptop")) == PinnedPeer("laptop", LAPTOP, ("ssh", "web"))


def test_services_are_allowed_and_denied(store: PeerStore) -> None:
    store.add("laptop", LAPTOP)
    store.allow("laptop", "ssh")
    store.allow("laptop", "ssh")
    store.allow("laptop", "web")
    store.deny("laptop", "ssh")
    store.deny("laptop", "never-allowed")
    assert plain(store.get("laptop")) == PinnedPeer("laptop", LAPTOP, ("web",))


def test_host_keys_are_replaced_and_forgotten(store: PeerStore) -> None:
    store.add("laptop", LAPTOP)
    store.set_ssh_host_keys("laptop", "ssh", ("ssh-ed25519 OLD",))
    store.set_ssh_host_keys("laptop", "ssh", ("ssh-ed25519 NEW",))
    assert store.all()[0].ssh_host_keys == {"ssh": ("ssh-ed25519 NEW",)}
    store.set_ssh_host_keys("laptop", "ssh", ())
    assert store.all()[0].ssh_host_keys == {}


def test_a_removed_peer_is_unknown(store: PeerStore) -> None:
    store.add("laptop", LAPTOP)
    store.remove("laptop")
    assert store.get("laptop") is None
    assert store.by_key(LAPTOP) is None
    for change in (
        lambda: store.remove("laptop"),
        lambda: store.allow("laptop", "ssh"),
        lambda: store.deny("laptop", "ssh"),
        lambda: store.set_ssh_host_keys("laptop", "ssh", ()),
    ):
        with pytest.raises(NoSuchPeerError, match="no peer is known here as 'laptop'"):
            change()


def test_asking_makes_no_file(store: PeerStore, tmp_path: Path) -> None:
    assert store.all() == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tag", ["", "Laptop", "lap top", "laptop\n", "-x"])
def test_what_is_no_tag_is_not_pinned(store: PeerStore, tag: str) -> None:
    with pytest.raises(InvalidTagError):
        store.add(tag, LAPTOP)


@pytest.mark.parametrize("service", ["", "x" * 201, "a\nb", "\x1b[31m", "\udcff"])
def test_what_is_no_service_name_is_not_granted(store: PeerStore, service: str) -> None:
    with pytest.raises(InvalidSpecError, match="a service name has 1 to 200 bytes, all printable"):
        store.add("laptop", LAPTOP, (service,))
    assert store.all() == ()


def test_changes_of_several_processes_at_once_are_all_kept(store: PeerStore, tmp_path: Path) -> None:
    store.add("laptop", LAPTOP)

    def allow(number: int) -> None:
        PeerStore(tmp_path / "peers.toml").allow("laptop", f"service-{number}")

    threads = [threading.Thread(target=allow, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [peer] = store.all()
    assert set(peer.services) == {f"service-{number}" for number in range(16)}


# --- one key, one name ------------------------------------------------------------------------------------------------


def test_a_key_that_is_known_is_not_added_by_another_name(store: PeerStore) -> None:
    store.add("laptop", LAPTOP, ("ssh",))
    with pytest.raises(KeyKnownError) as error:
        store.add("evil", LAPTOP, ("web",))
    assert str(error.value) == "that key is known here as laptop"
    assert error.value.hint == "To call it evil: p2ptunnel peers rename laptop evil"
    assert [peer.tag for peer in store.all()] == ["laptop"]


def test_who_pairs_again_keeps_its_name_unless_it_is_given_another(store: PeerStore) -> None:
    store.add("laptop", LAPTOP, ("ssh",))
    store.add("phone", PHONE)
    assert plain(store.pair(LAPTOP, "evil", ("web",))) == PinnedPeer("laptop", LAPTOP, ("ssh", "web"), registered_as="evil")
    assert store.pair(LAPTOP, "evil", name="work").tag == "work"
    assert [peer.tag for peer in store.all()] == ["work", "phone"]
    with pytest.raises(NameTakenError):
        store.pair(LAPTOP, "evil", name="phone")
    store.remove("work")
    assert store.by_key(LAPTOP) is None


def test_a_file_with_one_key_under_two_names_is_refused(store: PeerStore, tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(f'[peers.laptop]\nkey = "{LAPTOP}"\n[peers.evil]\nkey = "{LAPTOP}"\n')
    with pytest.raises(StoreError) as error:
        store.all()
    assert str(error.value) == f"{path}: peers.laptop and peers.evil have the same key"
    assert error.value.hint == "Delete one of the two: one key, one name."


def test_the_tag_to_ask_the_server_for_outlives_another_name_here(store: PeerStore, tmp_path: Path) -> None:
    store.add("home-nas", LAPTOP)
    store.rename("home-nas", "nas")
    store.rename("nas", "box")
    [box] = PeerStore(tmp_path / "peers.toml").all()
    assert (box.tag, box.registered_as, box.wanted) == ("box", "home-nas", "home-nas")
    store.rename("box", "home-nas")
    assert plain(store.get("home-nas")) == PinnedPeer("home-nas", LAPTOP)
    assert "registered_as" not in (tmp_path / "peers.toml").read_text()
    assert store.add("home-nas", LAPTOP, registered_as="new-nas").wanted == "new-nas"


def test_who_is_pinned_anew_is_somebody_new_in_every_process(store: PeerStore, tmp_path: Path) -> None:
    first = store.add("laptop", LAPTOP)
    assert PeerStore(tmp_path / "peers.toml").get("laptop") == first
    store.allow("laptop", "ssh")
    store.rename("laptop", "work")
    assert store.pair(LAPTOP, "laptop").since == first.since
    store.remove("work")
    assert store.add("work", LAPTOP).since > first.since


# --- access tickets ---------------------------------------------------------------------------------------------------


def test_a_ticket_that_was_made_is_noted_without_what_makes_it_one(store: PeerStore, tmp_path: Path) -> None:
    made = issue(OURS, ("web",), 2e9, LAPTOP)
    store.note_issued(issue(OURS, ("old",), 10), now=5)
    store.note_issued(made, now=20)
    [noted] = PeerStore(tmp_path / "peers.toml").issued()
    assert noted == IssuedTicket(made.name, ("web",), 2e9, LAPTOP)
    assert str(made) not in (tmp_path / "peers.toml").read_text()


def test_by_its_name_only_a_ticket_that_was_made_here_is_revoked(store: PeerStore) -> None:
    made = issue(OURS, ("web",), 2e9)
    with pytest.raises(ConfigError) as error:
        store.revoke_ticket(made.name)
    assert str(error.value) == "no ticket of that name was made here"
    assert error.value.hint == "`p2ptunnel peers tickets` lists them."
    assert not store.is_revoked(made.name)
    store.note_issued(made, now=0)
    store.revoke_ticket(made.name)
    store.revoke_ticket(made.name)
    assert store.is_revoked(made.name)


def test_a_ticket_that_a_peer_gave_us_can_be_dropped(store: PeerStore) -> None:
    kept, dropped = issue(OURS, ("web",), 2e9), issue(OURS, ("ssh",), 2e9)
    store.add("home-nas", OURS.public)
    for ticket in (kept, dropped):
        store.keep_ticket(ticket, now=0)
    assert store.drop_ticket(dropped.name).tickets == (kept,)
    assert store.all()[0].tickets == (kept,)
    with pytest.raises(ConfigError) as error:
        store.drop_ticket(dropped.name)
    assert str(error.value) == "no peer has given us a ticket of that name"
    assert error.value.hint == "`p2ptunnel peers show PEER` lists a peer's."


# --- a file that is not as it should be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[peers.laptop\n", "line 1 is no TOML: [peers.laptop"),
        ("peers = 3\n", "3 is not a table: `peers` at the top"),
        ("[peers.laptop]\n", "`key` is missing at peers.laptop"),
        (f'[peers.laptop]\nkey = "{LAPTOP}"\nservice = "ssh"\n', "unknown key `service` at peers.laptop"),
        (
            f'[peers.laptop]\nkey = "{LAPTOP}"\nservices = "ssh"\n',
            "'ssh' is not a list of services, each a name in quotes or a table with `name` and `until`: `services` at peers",
        ),
        (f'[peers.laptop]\nkey = "{str(LAPTOP)[:-1]}"\n', "in peers.laptop: not a usable public key"),
        (f'[peers.Laptop]\nkey = "{LAPTOP}"\n', "in peers.Laptop: 'Laptop' is not a tag"),
        (f'[peers.laptop]\nkey = "{LAPTOP}"\nservices = [""]\n', "in peers.laptop: cannot read ''"),
        (f'[peers.laptop]\nkey = "{LAPTOP}"\nregistered_as = "X"\n', "in peers.laptop: 'X' is not a tag"),
        ('[issued.ab]\nservices = []\nuntil = 2030-01-01T00:00:00Z\nholder = "x"\n', "in issued.ab: not a usable public key"),
    ],
)
def test_a_malformed_file_is_named_with_the_place_and_not_touched(
    store: PeerStore, tmp_path: Path, text: str, place: str
) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(text)
    for ask in (store.all, lambda: store.add("phone", PHONE), lambda: store.get("laptop")):
        with pytest.raises(StoreError) as error:
            ask()
        assert str(error.value).startswith(f"{path}: ")
        assert place in str(error.value)
        assert isinstance(error.value, ConfigError)
    assert path.read_text() == text


def test_a_file_that_is_no_text_is_named(store: PeerStore, tmp_path: Path) -> None:
    (tmp_path / "peers.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="line 1 is no text in UTF-8"):
        store.all()


def test_a_list_that_others_could_write_is_refused_and_one_that_they_could_read_is_not(
    store: PeerStore, tmp_path: Path
) -> None:
    store.add("laptop", LAPTOP)
    path = tmp_path / "peers.toml"
    path.chmod(0o644)
    assert PeerStore(path).get("laptop") is not None
    path.chmod(0o664)
    with pytest.raises(InsecureKeyFileError, match="others could read or replace it"):
        PeerStore(path).all()


def test_a_socket_or_directory_in_the_files_place_is_a_store_error(store: PeerStore, tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(StoreError):
            store.all()
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError):
        store.all()


# --- a disk that fails --------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir(mode=0o700)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines([bytes(4096)] * 32)


def test_on_a_full_disk_the_old_file_stays_and_is_used(small_disk: Path) -> None:
    store = PeerStore(small_disk / "peers.toml")
    store.add("laptop", LAPTOP, ("ssh",))
    before = (small_disk / "peers.toml").read_bytes()
    fill(small_disk)
    with pytest.raises(StoreError, match="No space left on device"):
        store.add("phone", PHONE, tuple(f"{number:0150}" for number in range(40)))
    assert (small_disk / "peers.toml").read_bytes() == before
    assert plain(store.get("laptop")) == PinnedPeer("laptop", LAPTOP, ("ssh",))
    assert sorted(child.name for child in small_disk.iterdir()) == [".lock", "filler", "peers.toml"]


def test_on_a_disk_that_is_read_only_an_identity_is_read_and_nothing_is_changed(small_disk: Path) -> None:
    profile = Profile(small_disk)
    identity = profile.identity()
    profile.peers().add("laptop", LAPTOP)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert profile.identity().public == identity.public
    assert profile.peers().get("laptop") is not None
    with pytest.raises(StoreError, match="Read-only file system"):
        profile.peers().add("phone", PHONE)
