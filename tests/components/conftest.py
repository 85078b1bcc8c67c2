"""Real volumes and small DICOM series for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from dicom_writing import write_series
from real_volumes import knee_dicom_folder, thorax_ct_file


@pytest.fixture(scope="session")
def knee_folder() -> Path:
    return knee_dicom_folder()


@pytest.fixture(scope="session")
def thorax_file() -> Path:
    return thorax_ct_file()


@pytest.fixture
def volume() -> np.ndarray:
    """Hounsfield units, (columns, rows, slices), no two sides alike."""
    return np.random.default_rng(0).integers(-1024, 2000, (10, 20, 30)).astype(np.float32)


@pytest.fixture
def affine() -> np.ndarray:
    return oblique_affine(np.random.default_rng(1))


@pytest.fixture
def series(tmp_path: Path, volume: np.ndarray, affine: np.ndarray) -> Callable[..., list[Path]]:
    """Write the volume below ``tmp_path / "case"``; keywords as for ``write_series``."""

    def write(**options: object) -> list[Path]:
        arguments = {"folder": tmp_path / "case", "volume": volume, "affine": affine, **options}
        return write_series(**arguments)

    return write


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return tmp_path / "case"


def oblique_affine(rng: np.random.Generator, spacing: tuple[float, ...] = (0.7, 0.9, 2.5)) -> np.ndarray:
    """A random orientation and origin; right-handed, so that slices ascend along their normal."""
    directions, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    directions[:, 2] *= np.linalg.det(directions)
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = rng.normal(size=3) * 100
    return affine


@pytest.fixture(scope="session")
def make_affine() -> Callable[..., np.ndarray]:
    return oblique_affine


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch):
    """Pretend to be one of several processes."""

    def pretend(rank: int, ranks: int) -> None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: ranks)

    return pretend
