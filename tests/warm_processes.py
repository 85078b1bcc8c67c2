"""Python processes that start at once: forked from one that has imported torch, MONAI and this package already.

``import monai`` takes about six seconds of a processor, and the tests start dozens of processes. A test of what a process
does (it is killed, it shares a folder or a group with others) starts it here; a test of the interpreter itself starts a
real one. Of where few packages are installed, one that is started there is forked (:func:`isolated`).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import forked
import monai.bundle.__main__
import torch

import medical_diffusion_components

MONAI_BUNDLE = monai.bundle.__main__.__file__  # the script behind ``python -m monai.bundle``
CONTEXT = multiprocessing.get_context("forkserver")
_SUBPROCESS_RUN = subprocess.run
_ROOMS = [room.name for room in pkgutil.iter_modules(medical_diffusion_components.__path__) if room.ispkg]
CONTEXT.set_forkserver_preload(
    [
        "torch.distributed.launcher",
        "torch._dynamo",
        "monai.bundle",
        *(f"medical_diffusion_components.{room}" for room in _ROOMS),
    ]
)


def python(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 600.0
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`` returns.

    Args:
        arguments: ``-m`` and a module, ``-c`` and code, or a script; then what the program gets. No other options.
        cwd: the folder it starts in; by default this one.
        env: all its variables; by default those of this process.
        timeout: s.

    Raises:
        subprocess.TimeoutExpired: it takes longer, and is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        variables = dict(os.environ if env is None else env)
        process = CONTEXT.Process(target=_run, args=(arguments, cwd or Path.cwd(), variables, printed))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        return subprocess.CompletedProcess(arguments, process.exitcode, *(file.read_text() for file in printed))


@contextlib.contextmanager
def isolated(env: Mapping[str, str], *modules: str) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """As :func:`python` for ``python -S`` with these variables: what it imports lies on their ``PYTHONPATH``, or nowhere.

    A process of its own imports ``modules`` there, once, and is forked for each command (arguments, ``cwd``).
    """
    command = [sys.executable, "-S", "-W", "ignore", forked.__file__, *modules]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, **pipes) as server, tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]

        def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
            for file in printed:
                file.write_text("")
            wanted = {"arguments": arguments, "cwd": cwd, "env": env, "printed": printed}
            print(json.dumps(wanted, default=str), file=server.stdin, flush=True)
            status = int(server.stdout.readline())
            return subprocess.CompletedProcess(arguments, status, *(file.read_text() for file in printed))

        yield run
        server.stdin.close()


def processes(count: int, worker: Callable[..., None], *arguments: object) -> None:
    """What ``torch.multiprocessing.spawn`` does: ``worker`` gets its rank and the arguments."""
    torch.multiprocessing.start_processes(worker, arguments, nprocs=count, start_method="forkserver")


def torchrun(
    processes: int,
    script: str,
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    forked: bool = True,
) -> subprocess.CompletedProcess[str]:
    """What ``torchrun`` does with a script; its processes are forked, too, or start as Python does."""
    options = ["--standalone", f"--nproc_per_node={processes}"] + forked * ["--run_path", "--start_method=fork"]
    return python("-m", "torch.distributed.run", *options, script, *arguments, cwd=cwd, env=env)


def _run_forked(
    command: Sequence[str], *, capture_output: bool = False, text: bool = False, **settings: Any
) -> subprocess.CompletedProcess:
    """In place of ``subprocess.run`` in a forked process: a Python that it starts is forked, too."""
    interpreter, *arguments = command
    if interpreter != sys.executable or not (text or not capture_output) or not settings.keys() <= {"cwd", "env"}:
        return _SUBPROCESS_RUN(command, capture_output=capture_output, text=text, **settings)
    done = python(*arguments, **settings)
    if not capture_output:
        print(done.stdout, end="", flush=True)
        print(done.stderr, end="", flush=True, file=sys.stderr)
    return done


def _run(arguments: list[str], cwd: Path, env: dict[str, str], printed: list[Path]) -> None:
    sys.path[:0] = env.get("PYTHONPATH", "").split(os.pathsep)
    subprocess.run = _run_forked
    forked.run(arguments, cwd, env, printed)
