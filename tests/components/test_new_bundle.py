"""The command that makes a bundle for data of one's own."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medical_diffusion_components.new_bundle import FILL_IN, main, new_bundle
from medical_diffusion_components.preflight.training_memory import training_memory

REPOSITORY = Path(__file__).parents[2]
SOURCES = [REPOSITORY / "bundles" / name for name in ("adni_ldm", "mrnet_ldm")]
SIZES = {"image_size": (16, 32, 12), "compression": (2, 2, 2)}
sys.path.insert(0, str(REPOSITORY / "tests" / "bundles"))
import bundle_folders  # noqa: E402


@pytest.fixture(params=SOURCES, ids=[source.name for source in SOURCES])
def made(request, tmp_path) -> Path:
    return new_bundle(request.param, tmp_path / "liver_ct", "Liver CT", **SIZES, spacing=(1.5, 1.25, 4), axcodes="LPS")


def lines(folder: Path) -> list[str]:
    return [line for file in sorted((folder / "configs").glob("*.yaml")) for line in file.read_text().splitlines()]


def test_every_configuration_has_the_new_values(made):
    for file in bundle_folders.config_files(made):
        config = bundle_folders.read(file)
        expected = {"image_size": [16, 32, 12], "compression": [2, 2, 2], "axcodes": "LPS"}
        expected |= {"embedded_cohort": None, "manifest": None, "flip_axis": 0}
        assert {id: bundle_folders.by_default(config[id]) for id in expected.keys() & config.keys()} == {
            id: value for id, value in expected.items() if id in config
        }
        assert "[1.5, 1.25, 4.0]" in file.read_text() or file.name not in (
            "prepare.yaml",
            "inference.json",
            "evaluate.yaml",
            "audit.yaml",
            "edit.yaml",
        )


@pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])
def test_with_the_values_of_the_source_only_comments_headers_and_data_differ(source, tmp_path):
    values = bundle_folders.read(source / "configs" / "train.yaml")
    made = new_bundle(source, tmp_path / "own", "Own", values["image_size"], values["compression"])
    for file in bundle_folders.config_files(made):
        before, after = bundle_folders.read(source / "configs" / file.name), bundle_folders.read(file)
        assert {id for id in before if before[id] != after[id]} <= {"embedded_cohort", "manifest", "bids_suffix"}
        comments = [re.findall(r"# .*", path.read_text()) for path in (source / "configs" / file.name, file)]
        assert len(comments[0]) == len(comments[1])


def test_others_may_read_it(made):
    assert made.stat().st_mode & 0o777 == 0o755


def test_the_paper_is_not_said_to_give_the_new_values(made):
    changed = [line for line in lines(made) if line.startswith(("image_size:", "compression:"))]
    assert len(changed) >= 21 and not any("paper" in line for line in changed)  # configurations know one, or both
    assert any("(paper)" in line for line in lines(made))  # of what stayed


def test_metadata_follow_from_the_sizes_and_leave_open_what_a_person_must_say(made):
    metadata = json.loads((made / "configs" / "metadata.json").read_text())
    noise, volume = (
        metadata["network_data_format"]["inputs"]["image"],
        metadata["network_data_format"]["outputs"]["pred"],
    )
    assert (noise["num_channels"], noise["spatial_shape"], volume["spatial_shape"]) == (8, [8, 16, 6], [16, 32, 12])
    assert metadata["name"] == "Liver CT" and list(metadata["changelog"]) == [metadata["version"]] == ["0.1.0"]
    for key in ("task", "description", "authors", "copyright", "data_source"):
        assert metadata[key].startswith(FILL_IN)
    for document in ("README.md", "data_license.txt"):
        text = (made / "docs" / document).read_text()
        assert FILL_IN in text and "{" not in text


@pytest.mark.slow
def test_it_passes_the_checks_that_glob_the_bundles(made):
    """All checks of one file or of one bundle alone, as in tests/bundles."""
    passed = 0
    for module in map(importlib.import_module, ("test_config_hygiene", "test_metadata", "test_shared_blocks")):
        for name, check in inspect.getmembers(module, inspect.isfunction):
            arguments = list(inspect.signature(check).parameters)
            if not name.startswith("test_"):
                continue
            if arguments == ["bundle"]:
                check(made)
            elif arguments == ["file"] and module.__name__ == "test_config_hygiene":
                for file in bundle_folders.config_files(made):
                    if not (name.startswith("test_a_yaml_file") and file.suffix == ".json"):
                        check(file)
            else:
                continue
            passed += 1
    assert passed > 12


@pytest.mark.slow
def test_it_trains_and_samples_on_a_folder_of_nifti(tmp_path):
    made = new_bundle(SOURCES[0], tmp_path / "liver_ct", "Liver CT", **SIZES)
    for number in range(5):
        voxels = np.random.default_rng(number).random((16, 32, 12)).astype(np.float32)
        (tmp_path / "data").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.25, 4, 1])), tmp_path / "data" / f"{number}.nii.gz")
    settings = bundle_folders.tiny(made, autoencoder_epochs=1, epochs=1, batch_size=1)
    bundle_folders.run(made, "train.yaml", dataset_dir=str(tmp_path / "data"), **settings)
    bundle_folders.run(made, "inference.json", **settings | {"num_volumes": 1})
    (sample,) = (made / "output" / "samples").glob("*.nii.gz")
    assert nib.load(sample).header.get_zooms() == pytest.approx((1.5, 1.25, 4))
    assert json.loads((made / "models" / "model.json").read_text())["data"] == "the user's dataset_dir"


def test_without_data_it_refuses_to_train(made):
    line = bundle_folders.last_line(made, "train.yaml", **bundle_folders.tiny(made))
    assert "no dataset_dir was given" in line and "--dataset_dir" in line
    assert not (made / "models").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": (16, 30, 12)}, r"must be divisible by \(16, 16, 2\): the nearest that are: .*16.*32"),
        ({"image_size": (16, 32)}, "three numbers each"),
        ({"image_size": (16, 32, 8)}, "at least 12 voxels"),
        ({"compression": (2, 3, 2)}, "powers of two"),
        ({"compression": (1, 1, 1)}, "at least one above 1"),
        ({"spacing": (1, 0, 1)}, "three numbers from 0.01 to 100.0 mm"),
        ({"spacing": (1, 1e-9, 1)}, r"three numbers from 0.01 to 100.0 mm, got \[1, 1e-09, 1\]"),
        ({"spacing": (1, 1, 101)}, "three numbers from 0.01 to 100.0 mm"),
        ({"spacing": (1, 1, float("nan"))}, "three numbers from 0.01 to 100.0 mm"),
        ({"axcodes": "RLS"}, "one each of R or L"),
        ({"name": " "}, "what the bundle is for"),
        ({"name": "Liver\nCT"}, "name must be a text of one line"),
        ({"subject": "livers\nbatch_size: 7"}, "subject must be a text of one line"),
        ({"knobs": {"batch_size": ("[1", "")}}, "batch_size: expected a value in YAML"),
        ({"target": "liver_v2"}, "takes for the beginning of a version"),
        ({"target": "adni"}, "is part of the other"),
        ({"target": "big_adni_ldm"}, "is part of the other"),
        ({"target": "own_neighbour"}, "is part of the other"),
        ({"target": "liver ct"}, "letters, digits and _"),
        ({"target": "taken"}, "exists: choose another folder"),
        ({"target": "nowhere/liver"}, "does not exist"),
        ({"source": "taken"}, "is no latent diffusion bundle: it lacks configs/prepare.yaml"),
    ],
    ids=str,
)
def test_what_would_not_work_is_refused_before_anything_is_written(tmp_path, capsys, changed, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "own" / "configs").mkdir(parents=True)
    shutil.copy(SOURCES[0] / "configs" / "metadata.json", tmp_path / "own" / "configs")
    before = bundle_folders.tree(tmp_path)
    options = {"source": SOURCES[0], "target": "liver", "name": "Liver", **SIZES} | changed
    options["target"] = tmp_path / options["target"]
    options["source"] = tmp_path / options["source"]  # an absolute path stays what it is
    with pytest.raises((ValueError, OSError), match=message):
        new_bundle(**options)
    assert bundle_folders.tree(tmp_path) == before and len(list(tmp_path.iterdir())) == 2


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("medical_diffusion_components.new_bundle.shutil.copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        new_bundle(SOURCES[0], tmp_path / "liver", "Liver", **SIZES)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_was_made_and_what_is_wrong(tmp_path, capsys):
    command = ["--source", str(SOURCES[0]), "--target", str(tmp_path / "liver"), "--name", "Liver"]
    sizes = ["--image_size", "96", "96", "48", "--compression", "4", "4", "4"]
    main([*command, *sizes])
    said = capsys.readouterr().out
    assert f"made {tmp_path / 'liver'}" in said
    stages = training_memory(tmp_path / "liver", (96, 96, 48))
    assert all(f"{gigabytes:.1f} GB ({stage})" in said for stage, gigabytes in stages.items()) and len(stages) == 2
    with pytest.raises(SystemExit) as stopped:
        main([*command, *sizes])
    assert stopped.value.code == 2 and "exists: choose another folder" in capsys.readouterr().err
