"""Which data a bundle uses, and what it says about them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.bundle import describe_data, ensure_first_stage, resolve_dataset
from medical_diffusion_components.data.phantoms import PHANTOM_NOTICE
from medical_diffusion_components.data.template_cohort import TEMPLATE_COHORT_NOTICE

SIZE = (16, 32, 12)


@pytest.mark.parametrize(
    ("cohort", "name", "notice"),
    [
        ("template", "template cohort", TEMPLATE_COHORT_NOTICE),
        ("knee", "knee phantom cohort", PHANTOM_NOTICE),
        ("breast", "breast phantom cohort", PHANTOM_NOTICE),
        ("chest", "chest phantom cohort", PHANTOM_NOTICE),
    ],
)
def test_an_embedded_cohort_is_written_announced_and_described(tmp_path, capsys, cohort, name, notice):
    folder = resolve_dataset(None, str(tmp_path), 3, SIZE, cohort)
    printed = capsys.readouterr().out
    assert f"using the embedded {name}" in printed and notice in printed
    facts = describe_data(None, folder)
    assert (facts["data"], facts["notice"]) == (f"embedded {name}", notice)
    assert sum(facts["cases"].values()) == (6 if cohort == "breast" else 3)
    case = json.loads((tmp_path / folder / "dataset.json").read_text())["training"][0]
    assert nib.load(tmp_path / folder / case["image"]).shape == SIZE
    assert resolve_dataset(None, str(tmp_path), 3, SIZE, cohort) == folder


def test_a_folder_of_the_user_is_taken_whatever_the_cohort(tmp_path):
    for number in range(3):
        nib.save(nib.Nifti1Image(np.ones(SIZE, np.float32), np.eye(4)), tmp_path / f"{number}.nii")
    assert resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE, None) == str(tmp_path)
    facts = describe_data(str(tmp_path), str(tmp_path))
    assert facts["data"] == "the user's dataset_dir" and facts["notice"] is None
    assert not (tmp_path / "out").exists()


def test_without_data_and_without_cohort_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(ValueError, match="give --dataset_dir"):
        resolve_dataset(None, str(tmp_path), 3, SIZE, None)
    assert list(tmp_path.iterdir()) == []


def test_an_anatomy_that_nothing_draws_is_refused(tmp_path):
    with pytest.raises(ValueError, match="anatomy must be one of knee, breast, chest; got 'liver'"):
        resolve_dataset(None, str(tmp_path), 3, SIZE, "liver")


@pytest.mark.parametrize("made_from", ["embedded template cohort", "embedded knee phantom cohort"])
def test_a_first_stage_of_an_embedded_cohort_is_not_mixed_with_data_of_the_user(tmp_path, made_from):
    weights = tmp_path / "model_autoencoder.pt"
    weights.write_bytes(b"")
    weights.with_suffix(".json").write_text(json.dumps({"data": made_from}))
    ensure_first_stage(str(weights), None)
    with pytest.raises(ValueError, match=f"was trained on the {made_from}, but dataset_dir is"):
        ensure_first_stage(str(weights), str(tmp_path))
