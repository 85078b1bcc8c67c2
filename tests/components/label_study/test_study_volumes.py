"""Volumes that a label study makes: others on its grid, and copies of the labelled ones."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torchio
from monai.transforms import Compose

from medical_diffusion_components.cohorts import write_phantom_cohort
from medical_diffusion_components.data import SPLITS, is_synthetic, load_cases
from medical_diffusion_components.label_study import volumes
from medical_diffusion_components.label_study.scales import longer_finetuning, pretraining_length, study_scale
from medical_diffusion_components.label_study.volumes import on_grid_of, smallest_training_split, write_copies
from medical_diffusion_components.transforms import LoadVolumed, ScaleAsPreparedd

FINE = ((20, 16, 24), (1.0, 2.0, 1.5))  # voxels and mm of the labelled data
COARSE = ((10, 16, 16), (2.0, 2.0, 3.0))  # of the others: the same width, and 48 mm for 36 in depth


def ramp(size: tuple, spacing: tuple, centre: float = 5.0) -> nib.Nifti1Image:
    """Intensities that grow with the position: by 1, 10 and 100 for a mm along the axes; the middle lies at ``centre``."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [centre - s * (n - 1) / 2 for n, s in zip(size, spacing)]
    places = [s * np.arange(n) - s * (n - 1) / 2 for n, s in zip(size, spacing)]
    x, y, z = np.meshgrid(*places, indexing="ij")
    return nib.Nifti1Image((x + 10 * y + 100 * z).astype(np.float32), affine)


def folder_of(path: Path, grid: tuple) -> Path:
    path.mkdir()
    for number in range(3):
        nib.save(ramp(*grid, centre=5.0 * number), path / f"{number}.nii.gz")
        (path / f"{number}.json").write_text(json.dumps({"weights_sha256": "abc", "seed": number}))
    return path


def test_volumes_are_brought_to_the_grid_of_the_data_middle_on_middle(tmp_path: Path) -> None:
    data, others = folder_of(tmp_path / "data", FINE), folder_of(tmp_path / "others", COARSE)
    cases = [{"image": f"{number}.nii.gz", "case_id": f"c{number}", "patient_id": f"p{number}"} for number in range(3)]
    (others / "dataset.json").write_text(json.dumps({split: [case] for split, case in zip(SPLITS, cases)}))
    made = on_grid_of(str(others), str(data), tmp_path / "made")
    expected = ramp(*FINE).get_fdata()
    expected[0], expected[-1] = expected[0] + 0.5, expected[-1] - 0.5  # the others end half a mm before
    for number, split in enumerate(SPLITS):
        (case,) = load_cases(made, split)
        volume = nib.load(case["image"])
        assert volume.shape == FINE[0] and volume.header.get_zooms() == pytest.approx(FINE[1])
        np.testing.assert_allclose(volume.get_fdata(), expected, atol=1e-2)  # linear interpolation has a ramp exactly
        assert is_synthetic(case["image"]), "the note came along"
        assert (case["case_id"], case["patient_id"]) == (f"c{number}", f"p{number}")


def test_a_finer_axis_is_blurred_before_it_is_thinned_out(tmp_path: Path) -> None:
    """Stripes of one voxel would come out as stripes of one, five times as wide, and should come out grey; waves stay."""
    data, others = folder_of(tmp_path / "data", COARSE), folder_of(tmp_path / "others", COARSE)
    waves = [np.sin(2 * np.pi * size * (np.arange(n) - (n - 1) / 2) / 20) for n, size in ((50, 0.4), (10, 2.0))]
    for file in others.glob("*.nii.gz"):
        voxels = np.broadcast_to((np.arange(50) % 2 + waves[0])[:, None, None], (50, 16, 16)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([0.4, 2.0, 3.0, 1.0])), file)
    made = on_grid_of(str(others), str(data), tmp_path / "made")
    inner = nib.load(load_cases(made, "test")[0]["image"]).get_fdata()[2:-2]
    np.testing.assert_allclose(inner, np.broadcast_to(0.5 + waves[1][2:-2, None, None], inner.shape), atol=0.08)


@pytest.mark.parametrize(
    ("size", "spacing", "codes"),
    [((20, 16, 23), FINE[1], "RAS"), (FINE[0], (1.0, 2.0, 1.51), "RAS"), (FINE[0], FINE[1], "LAS")],
)
def test_one_volume_on_another_grid_is_enough_to_make_copies(
    size: tuple, spacing: tuple, codes: str, tmp_path: Path
) -> None:
    data, others = folder_of(tmp_path / "data", FINE), folder_of(tmp_path / "others", FINE)
    odd = ramp(size, spacing)
    nib.save(odd if codes == "RAS" else odd.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]])), others / "1.nii.gz")
    made = on_grid_of(str(others), str(data), tmp_path / "made")
    assert made != str(others)
    for split in SPLITS:
        volume = nib.load(load_cases(made, split)[0]["image"])
        assert volume.shape == FINE[0] and volume.header.get_zooms() == pytest.approx(FINE[1])
        assert nib.aff2axcodes(volume.affine) == tuple("RAS")


def test_volumes_on_the_grid_already_are_left_where_they_are(tmp_path: Path) -> None:
    data, others = folder_of(tmp_path / "data", FINE), folder_of(tmp_path / "others", FINE)
    assert on_grid_of(str(others), str(data), tmp_path / "made") == str(others)
    assert not (tmp_path / "made").exists()


def test_what_was_made_from_other_volumes_is_refused(tmp_path: Path) -> None:
    data, others = folder_of(tmp_path / "data", FINE), folder_of(tmp_path / "others", COARSE)
    made = on_grid_of(str(others), str(data), tmp_path / "made")
    assert on_grid_of(str(others), str(data), tmp_path / "made") == made
    drawn_first = (others / "2.nii.gz").read_bytes()
    drawn_anew = nib.load(others / "2.nii.gz")
    nib.save(nib.Nifti1Image(drawn_anew.get_fdata() + 1, drawn_anew.affine), others / "2.nii.gz")
    with pytest.raises(
        ValueError, match=r"made was made from other volumes: volumes_sha256 was \w{64}, now \w{64}; remove it$"
    ):
        on_grid_of(str(others), str(data), tmp_path / "made")
    (others / "2.nii.gz").write_bytes(drawn_first)
    (others / "2.nii.gz").rename(others / "3.nii.gz")
    with pytest.raises(
        ValueError, match=r"was made from other volumes: cases was \[.*\], now \[.*\]; volumes_sha256 was"
    ):
        on_grid_of(str(others), str(data), tmp_path / "made")
    with pytest.raises(ValueError, match=r"--synthetic_dir was not given.*inference\.json"):
        on_grid_of(None, str(data), tmp_path / "made")


def test_copies_are_of_the_labelled_patients_alone_and_all_different(tmp_path: Path) -> None:
    data = str(write_phantom_cohort(tmp_path / "data", "breast", 8, (32, 32, 16)))
    made = write_copies(data, 1, 3, 5, tmp_path / "copies")
    record = json.loads((tmp_path / "copies" / "dataset.json").read_text())
    assert len({name.rsplit("_", 1)[0] for name in record["made_from"]["copies_of"]}) == 1
    volumes = [nib.load(case["image"]).get_fdata() for case in load_cases(made, "training")]
    assert len(volumes) == 5 and all(v.shape == (32, 32, 16) and -1 <= v.min() < v.max() <= 1 for v in volumes)
    differences = [np.abs(a - b).mean() for i, a in enumerate(volumes) for b in volumes[:i]]
    assert min(differences) > 0.02
    assert load_cases(made, "validation") == load_cases(data, "validation")
    again = write_copies(data, 1, 3, 5, tmp_path / "again")
    for case, other in zip(load_cases(made, "training"), load_cases(again, "training")):
        np.testing.assert_array_equal(nib.load(case["image"]).get_fdata(), nib.load(other["image"]).get_fdata())


def written_window(data: Path) -> None:
    """As preparation lists volumes with a fixed window: voxels from 0 to 255 there."""
    listing = json.loads((data / "dataset.json").read_text())
    fixed = {"limits_from": "window", "limits": [-1000.0, 1000.0], "range": [0.0, 255.0]}
    for split in SPLITS:
        for entry in listing[split]:
            image = nib.load(data / entry["image"])
            voxels = image.get_fdata()
            voxels = (voxels - voxels.min()) / np.ptp(voxels) * 200
            nib.save(nib.Nifti1Image(voxels.astype(np.float32), image.affine), data / entry["image"])
    (data / "dataset.json").write_text(json.dumps({**listing, "decided": {"scale": fixed}}))


def test_copies_are_of_every_volume_in_turn_and_are_scaled_as_the_volumes_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_phantom_cohort(tmp_path / "data", "breast", 8, (32, 32, 16))
    written_window(data)
    scale = ScaleAsPreparedd("image", clip=True)
    monkeypatch.setattr(volumes, "_copying", lambda: Compose([scale]))
    made = write_copies(str(data), 1, 3, 3, tmp_path / "copies", axcodes="LPS")
    first, *others = (nib.load(case["image"]) for case in load_cases(made, "training"))
    assert nib.aff2axcodes(first.affine) == tuple("LPS") and first.get_fdata().max() == pytest.approx(200 / 127.5 - 1)
    originals = json.loads((tmp_path / "copies" / "dataset.json").read_text())["made_from"]["copies_of"]
    assert len(originals) == 2, "both breasts"
    assert np.array_equal(first.get_fdata(), others[1].get_fdata())
    assert not np.array_equal(first.get_fdata(), others[0].get_fdata())


def test_volumes_with_a_fixed_window_keep_it_on_the_grid_and_in_copies(tmp_path: Path) -> None:
    """Their highest voxel is 200 of 255: scaled by its own extremes, a copy would have it at 1."""
    fine = str(folder_of(tmp_path / "fine", ((40, 30, 20), (1.0, 1.0, 1.0))))
    data = write_phantom_cohort(tmp_path / "data", "breast", 8, (32, 32, 16))
    written_window(data)
    scale = Compose([LoadVolumed("image"), ScaleAsPreparedd("image")])
    for made in (on_grid_of(str(data), fine, tmp_path / "made"), write_copies(str(data), 1, 3, 3, tmp_path / "copies")):
        for case in (case for split in SPLITS for case in load_cases(made, split)):
            assert case["window"] == [-1000.0, 1000.0]
            low, high = case["intensity_range"]
            voxels = nib.load(case["image"]).get_fdata()
            expected = np.clip((voxels - low) / (high - low) * 2 - 1, -1, 1)
            np.testing.assert_allclose(scale(case)["image"][0].numpy(), expected, atol=1e-5)
        listing = json.loads((Path(made) / "dataset.json").read_text())
        assert listing["made_from"]["window"] == [-1000.0, 1000.0], "made without it, they are refused"
    on_grid = [scale(case)["image"] for case in load_cases(str(tmp_path / "made"), "training")]
    assert max(float(image.max()) for image in on_grid) == pytest.approx(200 / 127.5 - 1, abs=0.1)


def test_a_copy_that_varies_beyond_the_window_is_cut_off_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_phantom_cohort(tmp_path / "data", "breast", 8, (32, 32, 16))
    written_window(data)
    brighter = torchio.Lambda(lambda voxels: voxels + 0.5, types_to_apply=[torchio.INTENSITY])  # of [0, 1]
    for name in ("RandomAffine", "RandomBiasField", "RandomGamma", "RandomBlur", "RandomNoise"):
        monkeypatch.setattr(torchio, name, lambda *_, **__: brighter)
    made = write_copies(str(data), 1, 3, 1, tmp_path / "copies")
    voxels = nib.load(load_cases(made, "training")[0]["image"]).get_fdata()
    assert voxels.max() == 1.0 and voxels.min() >= -1


def test_copies_of_another_seed_are_others(tmp_path: Path) -> None:
    data = str(write_phantom_cohort(tmp_path / "data", "breast", 4, (32, 32, 16)))
    patients = len({case["patient_id"] for case in load_cases(data, "training")})
    made = [write_copies(data, patients, seed, 1, tmp_path / str(seed)) for seed in (3, 4)]
    one, other = (nib.load(load_cases(folder, "training")[0]["image"]).get_fdata() for folder in made)
    assert np.abs(one - other).mean() > 0.02
    with pytest.raises(ValueError, match="made from other volumes: seed was 3, now 4; remove it"):
        write_copies(data, patients, 4, 1, tmp_path / "3")


def test_the_smallest_training_split_counts_and_a_folder_that_was_not_given_is_named(tmp_path: Path) -> None:
    folders = {name: str(folder_of(tmp_path / name, COARSE)) for name in ("synthetic_dir", "real_dir")}
    for number in range(3, 9):
        nib.save(ramp(*COARSE), tmp_path / "real_dir" / f"{number}.nii.gz")
    few, many = (len(load_cases(folder, "training")) for folder in folders.values())
    assert few < many and smallest_training_split(folders) == few
    with pytest.raises(ValueError, match="--pairs_dir was not given: a folder of NIfTI volumes"):
        smallest_training_split({**folders, "pairs_dir": None})


def test_arms_without_a_pretraining_have_its_batches_more() -> None:
    length = pretraining_length(600, num_volumes=77, batch_size=2, sizes={"roi_size": [64, 32, 32], "epochs": 3})
    assert length["epochs"] * 39 == pytest.approx(600, abs=20) and length["patience"] is None
    assert length["roi_size"] == [64, 32, 32]
    assert longer_finetuning(12, 50, 600, 1.0) == {"epochs": 24}
    assert longer_finetuning(12, 50, 600, 0.5) == {"epochs": 18}


def test_without_a_fixed_length_nothing_is_changed() -> None:
    assert (longer_finetuning(12, 50, None, 1.0), pretraining_length(None, 77, 2, {})) == ({}, {})


def test_scales_differ_in_size_and_in_nothing_of_the_protocol() -> None:
    small, large = study_scale("small"), study_scale("large")
    assert small.keys() == large.keys() and study_scale(None) == {}
    same = ("embedded_cohort", "num_embedded_subjects", "classes", "labelled", "seeds")
    assert all(small[id] == large[id] for id in same)
    assert (small["labelled"], len(small["seeds"])) == ([2, 4, 8, "all"], 5)
    with pytest.raises(ValueError, match="small, large, or null"):
        study_scale("medium")
