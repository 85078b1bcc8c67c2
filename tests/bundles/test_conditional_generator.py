"""A generator that can be asked for something, from a table of values to volumes: tiny, by the real commands."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_folders import Trained, assert_same, bundles_with, last_line, run, tiny, write_volume
from monai.bundle import ConfigParser

from medical_diffusion_components.data import VolumeSampler
from medical_diffusion_components.files import file_hash
from medical_diffusion_components.handlers.seeding import SeedIterations
from medical_diffusion_components.reports.montages import ReconstructionMontage, SampleMontage
from medical_diffusion_components.weights import load_tensors, provenance

pytestmark = pytest.mark.slow  # these train

BUNDLE = bundles_with("train_autoencoder.yaml", "train.yaml")[0]
DECLARED = {"age": {"range": [50, 90], "unit": "years"}, "sex": {"values": ["F", "M"]}}
SAMPLING = {"sampler": "dpmpp_2m", "num_inference_steps": 5, "num_volumes": 2}


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


def case(folder: Path, number: int) -> dict[str, Any]:
    write_volume(folder / f"{number}.nii.gz", number)
    values = {"age": None if number == 3 else 50 + 2.5 * number, "sex": "FM"[number % 2], "site": "a"}
    return {"image": f"{number}.nii.gz", "patient_id": f"p{number}", "conditions": values}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen patients with ages, one of them unknown, and sexes."""
    folder = tmp_path_factory.mktemp("cohort")
    cases = [case(folder, number) for number in range(15)]
    content = {"training": cases[:11], "validation": cases[11:13], "test": cases[13:]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def settings(folder: Path, data: Path, **overrides: Any) -> dict[str, Any]:
    folders = {"output_dir": str(folder / "output"), "models_dir": str(folder / "models"), "dataset_dir": str(data)}
    knobs = {"autoencoder_epochs": 1, "epochs": 4, "learning_rate": 0.02, "min_patients_in_note": 2}
    return tiny(BUNDLE, **folders, **knobs, conditions=DECLARED, **overrides)


def train(stop: int | None = None, **overrides: Any) -> None:
    """Train both stages; the second is interrupted before the iteration ``stop``."""
    seed = SeedIterations.__call__

    def interrupt(self: SeedIterations, engine: Any) -> None:
        if "conditions" in engine.state.batch and engine.state.iteration == stop:
            raise Interrupted
        seed(self, engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedIterations, "__call__", interrupt)
        patch.setattr(SampleMontage, "__call__", lambda *_: None)
        patch.setattr(ReconstructionMontage, "_draw", lambda *_: None)
        run(BUNDLE, "train.yaml", **overrides)


@pytest.fixture(scope="module")
def asked_for(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("conditional")
    overrides = settings(folder, cohort)
    train(**overrides)
    return Trained(BUNDLE, folder, overrides, {})


@pytest.fixture(scope="module")
def sample(
    asked_for: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[np.ndarray, list[dict]]]:
    """Settings -> the volumes that sampling writes, and their notes."""

    def make(**overrides: Any) -> tuple[np.ndarray, list[dict]]:
        folder = tmp_path_factory.mktemp("samples")
        run(BUNDLE, "inference.json", **sampling(asked_for, folder, **overrides))
        files = sorted(folder.glob("*.nii.gz"))
        notes = [json.loads(Path(str(file).replace(".nii.gz", ".json")).read_text()) for file in files]
        return np.stack([np.asarray(nib.load(file).dataobj) for file in files]), notes

    return make


def sampling(done: Trained, folder: Path, **overrides: Any) -> dict[str, Any]:
    return {"models_dir": str(done.models), "samples_dir": str(folder), **SAMPLING, **overrides}


def test_resumed_training_equals_uninterrupted(asked_for: Trained, cohort: Path, tmp_path: Path) -> None:
    overrides = settings(tmp_path, cohort, checkpoint_minutes=0)
    with pytest.raises(RuntimeError, match="Failed"):
        train(stop=7, **overrides)
    train(**overrides)
    for name in ("model.pt", "model_autoencoder.pt"):
        assert_same(load_tensors(tmp_path / "models" / name), load_tensors(asked_for.models / name))
    assert provenance(tmp_path / "models" / "model.pt") == provenance(asked_for.models / "model.pt")


def test_another_declaration_or_another_value_is_not_resumed(asked_for: Trained, cohort: Path) -> None:
    other = {**DECLARED, "age": {"range": [40, 90], "unit": "years"}}
    said = last_line(BUNDLE, "train.yaml", **{**asked_for.overrides, "conditions": other, "epochs": 5})
    assert "conditions::age::range was [50, 90], now [40, 90]" in said


def test_the_note_counts_patients_and_names_none(asked_for: Trained) -> None:
    note = provenance(asked_for.models / "model.pt")
    assert note["knobs"]["declared_conditions"] == DECLARED
    strata = note["condition_strata"]
    assert strata and all(stratum["patients"] >= 2 for stratum in strata)
    assert sum(stratum["patients"] for stratum in strata) <= 11
    assert not {"p0", "p1", "52.5", "site"} & set(json.dumps(note).replace('"', " ").split())


def test_volumes_follow_what_is_asked_for(sample: Callable) -> None:
    young, notes = sample(conditions={"age": 50, "sex": "F"})
    old, _ = sample(conditions={"age": 90, "sex": "F"})
    again, _ = sample(conditions={"age": 50, "sex": "F"})
    free, unasked = sample(conditions={"age": None, "sex": None})
    assert [note["conditions"] for note in notes] == [{"age": 50.0, "sex": "F"}] * 2
    assert [note["conditions"] for note in unasked] == [{"age": None, "sex": None}] * 2
    assert not np.array_equal(young, old) and np.array_equal(young, again)
    assert not np.array_equal(young, free) and not np.array_equal(old, free)
    guided, notes = sample(conditions={"age": 90, "sex": "F"}, guidance_scale=3.0)
    assert not np.array_equal(guided, old) and notes[0]["guidance_scale"] == 3.0


def test_what_is_left_out_is_drawn_from_the_note_for_each_volume(sample: Callable) -> None:
    _, notes = sample(num_volumes=3)
    _, again = sample(num_volumes=2, seed=1)
    drawn = [note["conditions"] for note in notes]
    assert [note["conditions"] for note in again] == drawn[1:]
    assert len({json.dumps(values) for values in drawn}) > 1
    assert all(note["conditions"]["sex"] == "M" for note in sample(conditions={"sex": "M"})[1])


def test_a_table_has_a_row_for_each_volume(sample: Callable, asked_for: Trained, tmp_path: Path) -> None:
    table = tmp_path / "asked.tsv"
    with open(table, "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["sex", "age"], ["F", "60"], ["M", "n/a"]])
    _, notes = sample(conditions=str(table))
    assert [note["conditions"] for note in notes] == [{"age": 60.0, "sex": "F"}, {"age": None, "sex": "M"}]
    said = last_line(
        BUNDLE, "inference.json", **sampling(asked_for, tmp_path / "x", conditions=str(table), num_volumes=3)
    )
    assert "expected one row for each of 3 volumes (num_volumes), got 2" in said


@pytest.mark.parametrize(("overrides", "message"), [
    ({"conditions": {"height": 1}}, "conditions: height is no declared condition; expected age, sex"),
    ({"conditions": {"age": 91}}, "expected age 50 to 90 years, got 91, which is out of range"),
    ({"conditions": {"age": "old"}}, "expected a number for age, got 'old'"),
    ({"conditions": {"age": 70, "sex": "F"}, "min_patients_per_condition": 50}, "that at least 50 training patients"),
])  # fmt: skip
def test_bad_requests_end_with_their_reason(
    asked_for: Trained, tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    assert message in last_line(BUNDLE, "inference.json", **sampling(asked_for, tmp_path, **overrides))
    assert not list(tmp_path.iterdir())


def test_beyond_the_range_is_allowed_with_a_mark(sample: Callable) -> None:
    _, notes = sample(conditions={"age": 95, "sex": "F"}, allow_extrapolation=True)
    assert notes[0]["conditions"]["age"] == 95.0 and notes[0]["extrapolated_conditions"] == ["age"]


def test_an_annotation_server_shows_what_can_be_asked_for_and_passes_it_on(
    asked_for: Trained, sample: Callable
) -> None:
    """As MONAI Label's stock app does: options by their names, then the noise of the preprocessing alone."""
    wanted = '{"age": 90, "sex": "F"}'
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.update({"models_dir": str(asked_for.models)})
    options = parser.get_parsed_content("displayable_configs")
    assert options["conditions_to_choose"] == "age 50 to 90 years; sex F or M"
    assert options["conditions"] is None and options["guidance_scale"] == 1.0
    steps = {name: SAMPLING[name] for name in ("sampler", "num_inference_steps")}
    parser["displayable_configs"].update({**options, **steps, "conditions": wanted})
    parser.parse()
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(load_tensors(asked_for.models / "model.pt"))
    data = {"image": "generate"}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    volumes, _ = sample(conditions=json.loads(wanted), num_volumes=1)
    np.testing.assert_allclose(np.asarray(data["pred"][0]), volumes[0], atol=0.5)


def test_volumes_sampled_while_training_have_the_conditions_of_inference(asked_for: Trained, sample: Callable) -> None:
    volumes, _ = sample(num_volumes=2)
    sampler = VolumeSampler(BUNDLE, settings={"models_dir": str(asked_for.models), **SAMPLING})
    np.testing.assert_allclose(np.asarray(sampler(1)[0]), volumes[1], atol=0.5)


def test_an_evaluation_says_whether_what_was_asked_for_was_made(
    asked_for: Trained, cohort: Path, tmp_path: Path
) -> None:
    """Asked against measured for every condition, at every guidance scale, with the ceiling of real volumes."""
    overrides = {"models_dir": str(asked_for.models), "output_dir": str(tmp_path), "dataset_dir": str(cohort)}
    overrides |= {"reference": "training", "num_volumes": 5, "spaces": ["anatomy"], "num_inference_steps": 3}
    run(BUNDLE, "evaluate.yaml", **overrides, sampler="ddim", guidance_scales=[1, 2])
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert list(report["obedience"]) == ["age", "sex"]
    rows = report["obedience"]["age"]["rows"]
    assert {name: row["n"] for name, row in rows.items()} == {
        "held_out": 10, "first_stage": 10, "synthetic": 5, "guidance_2": 5,
    }  # fmt: skip
    assert report["obedience"]["sex"]["rows"]["held_out"]["accuracy"]["value"] >= 0.5
    assert "guidance_2" in report["rows"] and "kid" in report["rows"]["guidance_2"]["anatomy"]
    with np.load(tmp_path / "evaluation" / "features.npz") as file:
        asked = file["obedience/age/synthetic"][:, 0]
        assert np.array_equal(asked, file["obedience/age/guidance_2"][:, 0])
    notes = [json.loads(path.read_text()) for path in sorted((tmp_path / "samples").glob("synthetic_*.json"))]
    assert [note["conditions"]["age"] for note in notes] == asked.tolist()
    assert [note["guidance_scale"] for note in notes] == [1.0] * 5
    one, two = (np.stack([np.asarray(nib.load(file).dataobj) for file in sorted((tmp_path / name).glob("*.nii.gz"))])
                for name in ("samples", "samples_guidance_2"))  # fmt: skip
    assert not np.array_equal(one, two)
    assert "Asked and measured" in (tmp_path / "evaluation" / "evaluation.html").read_text()
    assert "## obedience: age" in (tmp_path / "evaluation" / "evaluation.md").read_text()


def test_an_audit_says_what_it_found_in_each_combination(asked_for: Trained, cohort: Path, tmp_path: Path) -> None:
    """Volumes as the note has patients, and an age that nobody has; more held-out patients than were trained with."""
    data = Path(shutil.copytree(cohort, tmp_path / "data"))
    content = json.loads((data / "dataset.json").read_text())
    content["test"] += [{**case(data, number), "conditions": {"age": 60, "sex": "F"}} for number in range(20, 37)]
    (data / "dataset.json").write_text(json.dumps(content))
    samples = tmp_path / "samples"
    run(BUNDLE, "inference.json", **sampling(asked_for, samples))
    wanted = {"conditions": {"age": 95, "sex": "F"}, "allow_extrapolation": True, "seed": 2, "num_volumes": 1}
    run(BUNDLE, "inference.json", **sampling(asked_for, samples, **wanted))
    overrides = {"models_dir": str(asked_for.models), "output_dir": str(tmp_path / "output"), "encoder_steps": 2}
    overrides |= {"dataset_dir": str(data), "samples_dir": str(samples), "num_inference_steps": 5}
    run(BUNDLE, "audit.yaml", **overrides)
    strata = json.loads((tmp_path / "output" / "audit" / "audit.json").read_text())["strata"]
    assert strata["rare"]["flagged"]["volumes"] == 1 and strata["not_noted"] is None
    assert strata["each"][0]["conditions"] == {"age": "above 90", "sex": "F"} and strata["each"][0]["patients"] is None
    drawn = strata["each"][1:]
    counted = provenance(asked_for.models / "model.pt")["condition_strata"]
    assert sum(stratum["flagged"]["volumes"] for stratum in drawn) == 2
    for stratum in drawn:
        known = [one["patients"] for one in counted if one["stratum"] == stratum["conditions"]]
        assert [stratum["patients"]] == known and not stratum["enough"]
    text = (tmp_path / "output" / "audit" / "audit.md").read_text()
    assert "| age above 90; sex F | not counted |" in text
    del overrides["encoder_steps"]
    run(BUNDLE, "evaluate.yaml", **overrides, spaces=["anatomy"], sampler="ddim")
    report = json.loads((tmp_path / "output" / "evaluation" / "evaluation.json").read_text())
    assert (report["samples"], report["sampler"], report["steps"]) == ("a folder", None, None)
    page = (tmp_path / "output" / "evaluation" / "evaluation.html").read_text()
    assert "Copies by condition" in page and "<th>age above 90; sex F</th><td>not counted</td>" in page


def test_conditions_that_the_data_do_not_have_are_refused_before_sampling(
    asked_for: Trained, cohort: Path, tmp_path: Path
) -> None:
    content = json.loads((cohort / "dataset.json").read_text())
    for case in (case for split in content.values() for case in split):
        case["image"] = str(cohort / case["image"])
        del case["conditions"]["sex"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(content))
    overrides = {"models_dir": str(asked_for.models), "output_dir": str(tmp_path / "out"), "num_volumes": 3}
    overrides |= {"sampler": "ddim", "num_inference_steps": 3}
    said = last_line(BUNDLE, "evaluate.yaml", **overrides, dataset_dir=str(tmp_path / "data"), reference="training")
    assert "no case has a value of the declared condition sex; the cases have age, site" in said
    assert not (tmp_path / "out" / "samples").exists()


def test_a_released_generator_draws_brains_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    bundle = next(bundle for bundle in bundles_with("conditional.yaml"))
    released = bundle / "conditional" / "released"
    note = provenance(released / "model.pt")
    recipe = ConfigParser.load_config_file(bundle / "configs" / "conditional.yaml")
    assert (
        note["sha256"] == file_hash(released / "model.pt")
        and note["knobs"]["declared_conditions"] == recipe["conditions"]
    )
    found = {}
    for asked in (0.26, 0.38):
        folder = tmp_path / str(asked)
        given = {"models_dir": str(released), "conditions": {"brain_share": asked}, "samples_dir": str(folder)}
        run(bundle, "inference.json", **given, num_volumes=1, seed=102, num_inference_steps=8, sampler="dpmpp_2m")
        (file,) = folder.glob("*.nii.gz")
        found[asked] = float((np.asarray(nib.load(file).dataobj) > 30).mean())  # of 255
    assert all(abs(share - asked) < 0.04 for asked, share in found.items()), found
