"""What Python does with its arguments, in a process that was forked; as a script, a server that forks one for each line.

python -S forked.py MODULE ...

The server imports these modules and nothing of this repository. A line of its input is JSON, what :func:`run` takes; its
answer is the process's exit status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def run(arguments: Sequence[str], cwd: str, env: Mapping[str, str], printed: Sequence[str]) -> None:
    """Do as ``python *arguments`` would with these variables in this folder, and print into two files."""
    gc.freeze()  # what was imported before the fork is no garbage, and to look through it would copy its memory
    for number, file in enumerate(printed, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    kind, *rest = arguments
    try:
        if kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        elif kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [kind, *rest]
            sys.path.insert(0, str(Path(kind).parent))
            runpy.run_path(kind, run_name="__main__")
    except Exception:  # multiprocessing would print it itself, without asking the hook
        sys.excepthook(*sys.exc_info())
        sys.exit(1)


def serve(modules: Sequence[str]) -> None:
    sys.path[0] = ""  # not the folder of this file, but that in which a command is run
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            os.close(0)
            os.open(os.devnull, os.O_RDONLY)
            run(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
