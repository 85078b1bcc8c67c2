"""What a training may do with its data beyond the paper: weights of cases, random intensity, several views of a latent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_folders import bundles_with, run, tiny

from medical_diffusion_components.handlers.seeding import SeedIterations
from medical_diffusion_components.transforms.rand_scale_intensity import RandScaleAboveBackground

BUNDLE = bundles_with("train_autoencoder.yaml", "train.yaml")[0]


@pytest.mark.slow
def test_both_stages_draw_cases_by_weight_and_see_intensities_at_random(
    own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(str(file.relative_to(own_data)) for file in own_data.rglob("*.nii.gz"))
    cases = [{"image": name, "case_id": f"case_{n}", "weight": float(n not in (0, 3))} for n, name in enumerate(files)]
    split = {"training": cases[:6], "validation": cases[6:8], "test": cases[8:]}
    (own_data / "dataset.json").write_text(json.dumps(split))
    drawn: list[str] = []
    factors: list[float] = []
    seed, scale = SeedIterations.__call__, RandScaleAboveBackground.__call__

    def record(self: SeedIterations, engine: Any) -> None:
        drawn.extend(engine.state.batch["case_id"])
        seed(self, engine)

    def scaled(self: RandScaleAboveBackground, image: Any) -> Any:
        found = scale(self, image)
        factors.append(float((found.max() + 1) / (image.max() + 1)))
        return found

    monkeypatch.setattr(SeedIterations, "__call__", record)
    monkeypatch.setattr(RandScaleAboveBackground, "__call__", scaled)
    folders = {
        "dataset_dir": str(own_data),
        "output_dir": str(tmp_path / "output"),
        "models_dir": str(tmp_path / "models"),
    }
    knobs = {"weighted_cases": True, "intensity_scale": [0.7, 0.9], "latent_views": 3, "latent_shift": 1}
    run(BUNDLE, "train.yaml", **tiny(BUNDLE, **folders, **knobs, autoencoder_epochs=2, epochs=3))
    assert len(drawn) == 2 * 6 + 3 * 6 and set(drawn) == {"case_1", "case_2", "case_4", "case_5"}
    assert len(factors) == 2 * 6 + 2 * 6, "each draw of the first stage, two views of each training case"
    assert 0.7 <= min(factors) < max(factors) <= 0.9
    views = sorted(len(np.load(file)) for file in (tmp_path / "output" / "latents").rglob("*.npy"))
    assert views == [2] * 2 + [6] * 6, "validation latents are as they are"
