"""``edit.yaml``: every operation runs from its command with weights of any size; what it cannot use is refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_folders import for_bundles_with, for_each_kind_with, last_line, read, run, tiny, workflow

from medical_diffusion_components.weights import save_weights

pytestmark = pytest.mark.slow

edited = for_bundles_with("edit.yaml")
one = for_bundles_with("edit.yaml", at_most=1)


@pytest.fixture
def settings(bundle: Path, tmp_path: Path) -> dict:
    """Settings of an edit with a tiny, untrained generator, and a scan and a mask."""
    overrides = tiny(bundle, output_dir=str(tmp_path / "output"), models_dir=str(tmp_path / "models"))
    overrides |= {
        "resamples": 2,
        "jump_length": 1,
        "image": str(tmp_path / "scan.nii"),
        "mask": str(tmp_path / "mask.nii"),
    }
    parser = workflow(bundle, "edit.yaml", **overrides).parser
    save_weights(
        parser.get_parsed_content("network_def"), tmp_path / "models" / "model.pt", {"data": "embedded cohort"}
    )
    size = parser.get_parsed_content("image_size")
    affine = nib.orientations.inv_ornt_aff(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(parser.get_parsed_content("axcodes"))
        ),
        size,
    )
    voxels = np.random.default_rng(0).normal(size=size).astype(np.float32)
    mask = np.zeros(size, np.uint8)
    mask[4:8, 9:14, 3:6] = 1
    for name, array in (
        ("scan.nii", voxels),
        ("other.nii", voxels[::-1].copy()),
        ("mask.nii", mask),
        ("none.nii", mask * 0),
    ):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / name)
    return overrides


@for_each_kind_with("edit.yaml")
def test_every_operation_runs_and_leaves_a_page(bundle: Path, settings: dict, tmp_path: Path) -> None:
    other = str(tmp_path / "other.nii")
    run(bundle, "edit.yaml", **settings)
    for_all = {id: value for id, value in settings.items() if id not in ("mask", "resamples", "jump_length")}
    run(bundle, "edit.yaml", **for_all, operation="vary", strengths=[0.0, 1.0])
    run(bundle, "edit.yaml", **for_all, operation="interpolate", second_image=other, second_weights=[0.5])
    folder = tmp_path / "output" / "edited"
    assert {page.name for page in folder.glob("*.html")} == {"inpaint.html", "vary.html", "interpolate.html"}
    notes = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    assert len(notes) == 4 and {note["operation"] for note in notes} == {"inpaint", "vary", "interpolate"}
    assert all(note["synthetic"] is False and note["bundle"].startswith(bundle.name) for note in notes)
    (file,) = folder.glob("inpaint_*.nii.gz")
    outside = nib.load(settings["mask"]).get_fdata() == 0
    before, after = (nib.load(path).get_fdata() for path in (settings["image"], file))
    np.testing.assert_array_equal(after[outside], before[outside])


@one
def test_what_cannot_be_edited_is_refused_by_name(bundle: Path, settings: dict, tmp_path: Path) -> None:
    assert "expected a NIfTI file as --image, got none" in last_line(bundle, "edit.yaml", **settings | {"image": None})
    assert "none.nii: expected voxels other than 0" in last_line(
        bundle, "edit.yaml", **settings | {"mask": str(tmp_path / "none.nii")}
    )
    assert 'inpainting goes with the samplers "ddpm" and "ddim"' in last_line(
        bundle, "edit.yaml", **settings | {"sampler": "dpmpp_2m"}
    )
    assert not (tmp_path / "output" / "edited").exists()


@edited
def test_a_setting_of_another_operation_is_refused_before_anything_is_loaded(bundle: Path) -> None:
    said = last_line(bundle, "edit.yaml", operation="vary", mask="nowhere.nii")
    assert "--mask changes nothing in this run: it is a setting of --operation inpaint, not of vary" in said
    said = last_line(bundle, "edit.yaml", operation="interpolate", strengths=[0.5])
    assert "--strengths changes nothing in this run: it is a setting of --operation vary, not of interpolate" in said
    said = last_line(bundle, "edit.yaml", second_image="nowhere.nii")
    assert (
        "--second_image changes nothing in this run: it is a setting of --operation interpolate, not of inpaint" in said
    )
    assert "--operation must be one of inpaint, vary, interpolate, got 'very'" in last_line(
        bundle, "edit.yaml", operation="very"
    )


@edited
def test_every_setting_of_one_operation_is_listed_under_it(bundle: Path) -> None:
    text = (bundle / "configs" / "edit.yaml").read_text()
    commented = dict(re.findall(r"^(\w+): .*# of (inpaint|vary|interpolate): (?!ddim)", text, re.MULTILINE))
    listed = read(bundle / "configs" / "edit.yaml")["of_one_operation"]
    assert {id: operation for operation, ids in listed.items() for id in ids} == commented


@edited
def test_the_knobs_of_sampling_are_those_of_its_siblings(bundle: Path) -> None:
    edit, audit = (read(bundle / "configs" / file) for file in ("edit.yaml", "audit.yaml"))
    for id in ("autoencoder_def", "denoiser_def", "scheduler", "network_def", "knobs"):
        assert edit[id] == audit[id]
