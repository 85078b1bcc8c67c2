"""Nothing is fetched: not by an import, a training, a sampling, an evaluation, an audit or the release of a data set."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_folders import bundles_with
from no_network import CLOSED, may_close_the_network

SCRIPT = Path(__file__).parent / "no_network.py"


def in_a_process(code: str, command: tuple[str, ...] = ()) -> str:
    """What a process printed that watches itself."""
    watched = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); from no_network import *; import socket\n{code}"
    done = subprocess.run([*command, sys.executable, "-c", watched], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Every step of a bundle in a process that watches itself, with the network closed where that is allowed."""
    folder = tmp_path_factory.mktemp("offline")
    bundle = bundles_with("release_dataset.yaml")[0]
    command = [sys.executable, str(SCRIPT), str(folder / "report.json"), str(bundle), str(folder / "output")]
    done = subprocess.run(
        [*(CLOSED if may_close_the_network() else []), *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder / "home")},  # no cache of an earlier download
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_no_step_tries_to_reach_another_host(report: dict) -> None:
    assert report["attempts"] == []
    assert report["steps"] == ["train.yaml", "inference.json", "evaluate.yaml", "audit.yaml", "release_dataset.yaml"]


@pytest.mark.slow
@pytest.mark.skipif(not may_close_the_network(), reason="unshare --net is not allowed here")
def test_every_step_works_with_the_network_closed(report: dict) -> None:
    assert report["closed"] and len(report["steps"]) == 5


@pytest.mark.parametrize("attempt", [
    "import urllib.request; urllib.request.urlopen('http://example.org')",
    "socket.create_connection(('192.0.2.1', 80))",
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
])  # fmt: skip
def test_an_attempt_that_somebody_catches_is_seen(attempt: str) -> None:
    code = f"found = attempts_from_now()\ntry:\n    {attempt}\nexcept Exception:\n    pass\nprint(found)"
    assert "example.org" in (printed := in_a_process(code)) or "192.0.2.1" in printed


def test_the_machine_itself_may_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"found = attempts_from_now()\nsocket.create_connection(('localhost', {port}))\nprint(found)"
        assert in_a_process(code) == "[]"


@pytest.mark.skipif(not may_close_the_network(), reason="unshare --net is not allowed here")
def test_a_closed_network_is_known_from_an_open_one() -> None:
    assert in_a_process("print(is_closed())", tuple(CLOSED)) == "True"
