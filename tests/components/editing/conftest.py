"""An untrained generator, an editing with it, a scan and a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scans_to_edit import SIZE, Edit

from medical_diffusion_components.dicom_export.edited_series import EditedSeries
from medical_diffusion_components.diffusion import LatentDiffusionGenerator, noise_scheduler
from medical_diffusion_components.editing import (
    EditedVolumeWriter,
    LatentEditor,
    ScanEditing,
    scan_editing,
)
from medical_diffusion_components.networks import VQGAN, Denoiser, EMACodebook
from medical_diffusion_components.weights import save_weights


@pytest.fixture(scope="module")
def generator() -> LatentDiffusionGenerator:
    torch.manual_seed(0)
    first_stage = VQGAN(EMACodebook(32, 4), 1, 4, (2, 2, 2), 4)
    first_stage.codebook.codes.copy_(torch.randn(32, 4))
    denoiser = Denoiser(4, 8, (1, 2), 2, 8)
    return LatentDiffusionGenerator(first_stage, denoiser, noise_scheduler(8, "sample"), "ddim", 3).eval()


@pytest.fixture
def edit(tmp_path: Path, generator: LatentDiffusionGenerator, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """An editing with an untrained generator, which gives no scan back as it was; no remark is made on that."""
    monkeypatch.setattr(scan_editing, "UNLIKE", 2.0)
    monkeypatch.setattr(scan_editing, "ALIKE", -1.0)

    def made(**options: Any) -> ScanEditing:
        weights = save_weights(generator, tmp_path / "model.pt", {"data": "embedded cohort", "notice": "no patients"})
        formats = {"dicom": EditedSeries("MR")}
        writer = EditedVolumeWriter(
            tmp_path / "edited", weights, {"bundle": "some_ldm 0.2.0"}, options.pop("output_format", "nifti"), formats
        )
        editor = LatentEditor(generator, 2, 2)
        spacing = options.pop("spacing", (2.0, 1.5, 3.0))
        return ScanEditing(editor, writer, tmp_path / "edited" / "page.html", SIZE, spacing, **options)

    return made


@pytest.fixture
def voxels() -> np.ndarray:
    """(12, 16, 20) int16: turned to RAS, the model's size."""
    return np.random.default_rng(0).integers(0, 1000, (12, 16, 20)).astype(np.int16)


@pytest.fixture
def mask(voxels: np.ndarray) -> np.ndarray:
    found = np.zeros(voxels.shape, np.uint8)
    found[5:8, 6:10, 7:12] = 1
    return found
