"""Wheel and source archive of the package, the same bytes each time."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.release.bundle_archive import source_date

__all__ = ["build_distributions"]

SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
_BUILD = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"


def build_distributions(repository: Path, out: Path) -> list[Path]:
    """Build both from a copy of what belongs to them, with the setuptools that is installed.

    Args:
        repository: folder with ``setup.cfg`` and the package.
        out: where they go.

    Raises:
        RuntimeError: setuptools failed; the message ends with what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder) / "source", Path(folder) / "built"
        package = "medical_diffusion_components"
        shutil.copytree(repository / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name in SOURCES:
            shutil.copy(repository / name, source)
        built.mkdir()
        command = [sys.executable, "-c", _BUILD, str(built)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(source_date())}
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"setuptools could not build the package: {done.stderr[-2000:]}")
        made = []
        for path in sorted(built.iterdir()):
            if path.name.endswith(".tar.gz"):
                path.write_bytes(_timeless(path.read_bytes()))
            made.append(write_atomically(out / path.name, partial(shutil.copyfile, path)))
    return made


def _timeless(archive: bytes) -> bytes:
    """A ``.tar.gz`` whose members are sorted and bear neither an owner nor the time at which they were copied."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as source, tarfile.open(fileobj=buffer, mode="w") as target:
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = source_date(), 0, 0, "", ""
            member.mode = 0o755 if member.isdir() else 0o644
            member.pax_headers = {}
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return gzip.compress(buffer.getvalue(), mtime=source_date())
