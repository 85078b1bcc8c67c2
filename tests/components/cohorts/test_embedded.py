"""Which data a bundle uses, and what it says about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components import requirements
from medical_diffusion_components.cohorts import embedded
from medical_diffusion_components.cohorts.embedded import more_held_out_cases, resolve_dataset
from medical_diffusion_components.cohorts.phantoms import PHANTOM_NOTICE
from medical_diffusion_components.cohorts.template import TEMPLATE_COHORT_NOTICE
from medical_diffusion_components.data.datasets import describe_data
from medical_diffusion_components.workflow import ensure_first_stage

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
    embedded._announce.cache_clear()
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
        nib.save(nib.Nifti1Image(np.full(SIZE, number + 1, np.float32), np.eye(4)), tmp_path / f"{number}.nii")
    assert resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE, None) == str(tmp_path)
    facts = describe_data(str(tmp_path), str(tmp_path))
    assert facts["data"] == "the user's dataset_dir" and facts["notice"] is None
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["splits_compared.json"], "no cohort"


def test_the_same_bytes_in_two_splits_are_refused_whatever_the_files_are_called(tmp_path):
    for number, value in enumerate((1, 2, 3, 1)):
        nib.save(nib.Nifti1Image(np.full(SIZE, value, np.float32), np.eye(4)), tmp_path / f"{number}.nii")
    listed = {"training": ["0.nii"], "validation": ["1.nii"], "test": ["2.nii", "3.nii"]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    with pytest.raises(
        ValueError, match=r"1 pair\(s\) of cases hold the same scan in two splits, the first is 0 and 3"
    ):
        resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE)
    (tmp_path / "dataset.json").write_text(json.dumps({**listed, "test": ["2.nii"]}))
    assert resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE) == str(tmp_path)


def test_synthetic_volumes_are_refused_unless_asked_for(tmp_path):
    for number in range(3):
        nib.save(nib.Nifti1Image(np.full(SIZE, number + 1, np.float32), np.eye(4)), tmp_path / f"{number}.nii.gz")
    (tmp_path / "0.json").write_text(json.dumps({"EchoTime": 0.1}))  # a scanner's sidecar
    assert resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE) == str(tmp_path)
    (tmp_path / "2.json").write_text(json.dumps({"seed": 2, "weights_sha256": "abc"}))
    with pytest.raises(ValueError, match=r"1 of the 3 volumes in .* are synthetic, first .*2\.nii\.gz"):
        resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE)
    assert resolve_dataset(str(tmp_path), str(tmp_path / "out"), 3, SIZE, allow_synthetic=True) == str(tmp_path)


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


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, int], None]:
    def one(name: str, number: int) -> None:
        (tmp_path / "data").mkdir(exist_ok=True)
        voxels = np.random.default_rng(number).normal(size=(3, 4, 5)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "data" / name)

    return one


def test_a_users_folder_is_used_as_it_is_and_described_without_names(tmp_path: Path, write: Callable, capsys) -> None:
    for number in range(4):
        write(f"smith_{number}.nii.gz", number)
    folder = str(tmp_path / "data")
    assert resolve_dataset(folder, str(tmp_path / "out"), 5, (3, 4, 5)) == folder
    facts = describe_data(folder, folder)
    assert sum(facts["cases"].values()) == 4 and facts["notice"] is None
    assert "smith" not in json.dumps(facts) and str(tmp_path) not in json.dumps(facts)
    assert capsys.readouterr().out == ""
    [memory] = (tmp_path / "out").iterdir()
    assert "smith" not in memory.read_text()
    write("smith_3.nii.gz", 99)
    assert describe_data(folder, folder)["data_sha256"] != facts["data_sha256"]


@pytest.mark.slow
def test_the_embedded_cohort_is_written_once_and_announced_once(tmp_path: Path, capsys) -> None:
    embedded._announce.cache_clear()
    folders = [resolve_dataset(None, str(tmp_path), 3, (8, 9, 10)) for _ in range(2)]
    assert folders[0] == folders[1] and Path(folders[0]).parent == tmp_path
    assert capsys.readouterr().out.count("No dataset_dir was given") == 1
    facts = describe_data(None, folders[0])
    assert facts["data"].startswith("embedded ") and "not patients" in facts["notice"]


def test_each_bundle_that_a_process_runs_announces_its_cohort_once(tmp_path: Path, capsys) -> None:
    for name in ("one", "other", "one"):
        resolve_dataset(None, str(tmp_path / name), 3, SIZE, "knee")
        more_held_out_cases(None, str(tmp_path / name / "held_out"), 3, SIZE, "knee")
    assert capsys.readouterr().out.count("No dataset_dir was given") == 2


def test_phantoms_do_without_the_package_of_the_template(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "nilearn" else find_spec(name))
    assert Path(resolve_dataset(None, str(tmp_path), 3, SIZE, "knee")).is_dir()
    with pytest.raises(ModuleNotFoundError, match='no dataset_dir was given: .*pip install "nilearn>=0.10,<0.15"$'):
        resolve_dataset(None, str(tmp_path), 3, SIZE, "template")


def test_a_bundle_without_a_cohort_asks_for_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no dataset_dir was given, and this bundle has no embedded cohort"):
        resolve_dataset(None, str(tmp_path), 3, (8, 9, 10), None)


@pytest.mark.parametrize("cohort", ["template", None])
def test_a_folder_that_is_not_there_is_an_error_whatever_could_replace_it(tmp_path: Path, cohort: str | None) -> None:
    with pytest.raises(FileNotFoundError, match="/none does not exist"):
        resolve_dataset("/none", str(tmp_path), 3, (8, 9, 10), cohort)
    assert list(tmp_path.iterdir()) == []
