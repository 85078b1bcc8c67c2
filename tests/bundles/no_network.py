"""Run every step of a bundle and write down whom it tried to reach; started by test_offline.py as a process of its own.

python no_network.py REPORT BUNDLE OUTPUT
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOPBACK = ("localhost", "127.", "::1", "0.0.0.0")
CLOSED = ["unshare", "--map-root-user", "--net"]  # what closes the network to the command behind it
NOWHERE = ("192.0.2.1", 9)  # an address for documentation: nobody has it


def may_close_the_network() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*CLOSED, "true"], capture_output=True, check=False).returncode == 0
    )


def attempts_from_now() -> list[str]:
    """A list that grows by every attempt of this process to reach another host; the attempt itself fails."""
    found: list[str] = []
    refuse_other_hosts(found.append)
    return found


def refuse_other_hosts(record: Callable[[str], object]) -> None:
    """From now on every attempt of this process to reach another host is recorded and fails."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # else the path of a local socket
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
            host = arguments[0]
        else:
            return
        name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
        if not name.startswith(LOOPBACK):
            record(f"{event} {name}")
            raise PermissionError(f"this must work without a network, but it tried to reach {name}")

    sys.addaudithook(watch)


def is_closed() -> bool:
    """Whether this process has no way to other hosts at all; asked before the attempts are watched."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(NOWHERE)  # of UDP: looks for a way, sends nothing
        except OSError:
            return True
    return False


def main(report: Path, bundle: Path, output: Path) -> None:
    closed, attempts, steps = is_closed(), attempts_from_now(), []
    sys.path[:0] = [str(Path(__file__).parent), str(bundle.parents[1])]
    import torch.hub  # noqa: F401

    import medical_diffusion_components

    for module in pkgutil.walk_packages(
        medical_diffusion_components.__path__, f"{medical_diffusion_components.__name__}."
    ):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    from bundle_folders import run, tiny

    settings = tiny(bundle, output_dir=str(output), models_dir=str(output / "models"))
    for config, others in (
        ("train.yaml", {}),
        ("inference.json", {}),
        ("evaluate.yaml", {}),
        ("audit.yaml", {}),
        ("release_dataset.yaml", {"audited": False}),
    ):
        run(bundle, config, **settings, **others)
        steps.append(config)
    report.write_text(json.dumps({"closed": closed, "attempts": attempts, "steps": steps}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
