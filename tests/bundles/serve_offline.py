"""MONAI Label's server in a namespace without a network: asks each bundle once, notes whom it calls.

python serve_offline.py REPORT PYTHON SEGMENTER GENERATOR STUDIES

Started by test_monai_label_server.py as a process of its own.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
from pathlib import Path

from label_server import label_server
from no_network import is_closed

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h
_GUARD = """
from no_network import refuse_other_hosts

def record(attempt):
    with open({file!r}, "a") as attempts:
        attempts.write(attempt + "\\n")

refuse_other_hosts(record)
"""


def bring_up_loopback() -> None:
    """A new network namespace has a loopback that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        name, flags = struct.unpack("16sh", fcntl.ioctl(handle, _SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0)))
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sh", name, flags | _IFF_UP))


def main(report: Path, python: Path, segmenter: Path, generator: Path, studies: Path) -> None:
    folder = report.parent
    bring_up_loopback()
    attempts = folder / "attempts"
    attempts.touch()
    guard = folder / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(_GUARD.format(file=str(attempts)))  # Python imports it before anything else
    with label_server(python, folder, [segmenter, generator], studies, [guard, Path(__file__).parent]) as server:
        study = next(studies.glob("*.nii.gz")).name.removesuffix(".nii.gz")
        for bundle, image in ((segmenter, study), (generator, "generate")):
            asked = {"image": image, "output": "image"}
            (folder / f"{bundle.name}.nii.gz").write_bytes(
                server.send(f"/infer/{bundle.name}", asked, {"device": "cpu"})
            )
    report.write_text(json.dumps({"closed": is_closed(), "attempts": attempts.read_text().splitlines()}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
