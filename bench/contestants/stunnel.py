"""stunnel: TLS 1.3 with one certificate, a TLS connection and a thread for each client."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.contest import FAR, FORWARD_PORT, LOOPBACK, SINK_PORT, STREAM_PORT, Contestant

if TYPE_CHECKING:
    from bench.rig import Program, Rig

_BOTH: Final = "foreground=yes\npid=\nsyslog=no\ndebug=3\nsocket=l:TCP_NODELAY=1\nsocket=r:TCP_NODELAY=1\n[bench]\n"


def _start(rig: Rig, _: Path) -> Program:
    rig.sink()
    pem = rig.directory / "stunnel.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=far"]
    subprocess.run([*make, "-keyout", pem, "-out", rig.directory / "cert.pem"], check=True, capture_output=True)
    with pem.open("a") as file:
        file.write((rig.directory / "cert.pem").read_text())
    far, near = rig.directory / "far.conf", rig.directory / "near.conf"
    far.write_text(f"{_BOTH}accept={FAR}:{STREAM_PORT}\nconnect={LOOPBACK}:{SINK_PORT}\ncert={pem}\n")
    near.write_text(
        f"{_BOTH}client=yes\naccept={LOOPBACK}:{FORWARD_PORT}\nconnect={FAR}:{STREAM_PORT}\n"
        f"ciphersuites=TLS_AES_128_GCM_SHA256\nCAfile={rig.directory}/cert.pem\nverifyPeer=yes\n"
    )
    rig.far.wait_for_port(STREAM_PORT, rig.far.start(["stunnel", far]))
    return rig.probe(rig.near.start(["stunnel", near]))


CONTESTANTS: Final = (
    Contestant(
        "stunnel",
        "forward",
        "stunnel, TLS 1.3 AES-128-GCM",
        _start,
        programs={"stunnel": "stunnel4", "openssl": "openssl"},
    ),
)
