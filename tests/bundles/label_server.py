"""MONAI Label's stock ``monaibundle`` app as a process of its own, for tests that speak to it as 3D Slicer does.

MONAI Label wants torchvision, which this project does without: it goes without its dependencies into an environment of its
own, which looks into the running one for torch and MONAI. What it takes of torchvision draws pictures for TensorBoard, and
``pydicom_seg`` is for DICOM archives; two empty modules stand in for both.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
VERSION = "0.8.5"
VARIABLE = "MONAI_LABEL_PYTHON"  # an interpreter that has MONAI Label, instead of an environment made here
# what the server imports, of the requirements of its wheel
_LIGHT = (
    *(
        "bcrypt",
        "cachetools",
        "dicomweb-client",
        "einops",
        "expiring_dict",
        "expiringdict",
        "fastapi",
        "filelock",
        "httpx",
    ),
    *("girder-client", "google-auth", "ninja", "numpymaxflow", "passlib", "psutil", "pydantic-settings", "pyjwt"),
    *("pynetdicom", "pynrrd", "python-dotenv", "python-multipart", "requests", "requests-toolbelt", "schedule"),
    *("scikit-learn", "shapely", "timeloop", "uvicorn", "watchdog"),
)
_STAND_INS = {
    "torchvision/__init__.py": "",
    "torchvision/utils.py": "def make_grid(*args, **options):\n    raise NotImplementedError\n\n\nsave_image = make_grid\n",
    "pydicom_seg/__init__.py": "",
}


class CannotInstall(RuntimeError):
    """The reason why there is no server to test with."""


def server_python(folder: Path) -> Path:
    """An interpreter with MONAI Label: that of the environment variable, or one of a new environment in ``folder``.

    Raises:
        CannotInstall: as where there is no network.
    """
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "running_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for file, text in _STAND_INS.items():
        (packages / file).parent.mkdir(exist_ok=True)
        (packages / file).write_text(text)
    for wanted in (["--no-deps", f"monailabel=={VERSION}"], ["--constraint", str(CONSTRAINTS), *_LIGHT]):
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
        command += ["--retries", "1", *wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CannotInstall(f"MONAI Label cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


class LabelServer:
    """A server at work, on this machine alone.

    Args:
        url: where it listens.
        log: file of what it prints.
    """

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def get(self, path: str) -> Any:
        """JSON from the server."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def send(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        files: Mapping[str, Path] | None = None,
        method: str = "POST",
        timeout: float = 600.0,
    ) -> bytes:
        """What the server answers to a form, such as 3D Slicer sends it.

        Args:
            path: with its first slash.
            query: behind the question mark.
            params: of the model, sent as the field ``params``.
            files: field -> file to upload.
            method: POST or PUT.
            timeout: s.

        Raises:
            AssertionError: the server refuses, with its reason.
        """
        mark = uuid.uuid4().hex
        parts = [] if params is None else [('name="params"', json.dumps(params).encode())]
        parts += [
            (f'name="{field}"; filename="{file.name}"', file.read_bytes()) for field, file in (files or {}).items()
        ]
        body = b"".join(
            f"--{mark}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
            for head, content in parts
        )
        body += f"--{mark}--\r\n".encode()
        address = self.url + path + ("?" + urllib.parse.urlencode(query) if query else "")
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        request = urllib.request.Request(address, body if parts else b"", headers if parts else {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.code} {error.read().decode()[:2000]}") from error

    def train(self, model: str, params: Mapping[str, Any], timeout: float = 1200.0) -> dict[str, Any]:
        """Train a model and wait for its end; the server's account of it."""
        request = urllib.request.Request(
            f"{self.url}/train/{model}",
            json.dumps(params).encode(),
            {"Content-Type": "application/json"},
            method="POST",
        )
        urllib.request.urlopen(request, timeout=60).close()
        end = time.monotonic() + timeout
        while (told := self.get("/train/"))["status"] not in ("DONE", "ERROR"):
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.2)
        return told


@contextlib.contextmanager
def label_server(
    python: Path, folder: Path, bundles: Sequence[Path], studies: Path, import_path: Sequence[Path]
) -> Iterator[LabelServer]:
    """A running server with the stock app.

    Args:
        python: see :func:`server_python`.
        folder: the app and the log go there.
        bundles: folders that become the app's models.
        studies: NIfTI files.
        import_path: what is on the server's path beside its own packages.
    """
    app = folder / "monaibundle"
    prefix = Path(
        subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True).stdout[:-1]
    )
    shutil.copytree(prefix / "monailabel" / "sample-apps" / "monaibundle", app)
    for bundle in bundles:
        shutil.copytree(bundle, app / "model" / bundle.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = {"models": ",".join(bundle.name for bundle in bundles), "zoo_source": "local", "sam2": "false"}
    command = [str(python), "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += [part for name, value in conf.items() for part in ("--conf", name, value)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, import_path)), "HOME": str(folder)}
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        server = LabelServer(f"http://127.0.0.1:{port}", log)
        _wait_for(server, process)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(server: LabelServer, process: subprocess.Popen, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None and time.monotonic() < end, server.log.read_text()[-3000:]
        try:
            server.get("/info/")
            return
        except urllib.error.URLError:
            time.sleep(1)
