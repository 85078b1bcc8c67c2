"""Released or own weights, the embedded cohort or own data: what is compared with volumes that the weights never saw."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_folders import Trained, for_bundles_with, last_line, run

pytestmark = pytest.mark.slow  # all of these train
SAMPLER = {"num_inference_steps": 2, "sampler": "ddim"}  # the tiny denoiser has few timesteps
EVALUATION = SAMPLER | {"num_volumes": 3}
AUDIT = SAMPLER | {"encoder_steps": 2, "num_calibration_subjects": 20}
REFUSED = "this generator has never seen them"


@pytest.fixture
def clone(bundle: Path, trained: Callable[[Path], Trained], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a bundle whose only weights, of the embedded cohort, lie in this folder of it, with volumes they made."""
    done = trained(bundle)

    def copied(folder: str) -> Path:
        copy = tmp_path / bundle.name
        shutil.copytree(bundle / "configs", copy / "configs")
        (copy / folder).mkdir()
        for suffix in (".pt", ".json"):
            shutil.copy(done.models / f"model{suffix}", copy / folder)
        shutil.copytree(done.output / "samples", copy / "output" / "samples")
        return copy

    return copied


@pytest.fixture
def own(trained: Callable[[Path], Trained], bundle: Path, tmp_path: Path) -> dict[str, Any]:
    """A user's folder of volumes of the weights' size, most of which they were not trained on."""
    output, folder = trained(bundle).output, tmp_path / "own"
    cohort, others = next(output.glob("*/dataset.json")), next(output.glob("held_out/*/dataset.json"))
    shutil.copytree(others.parent, folder / "others")
    content = json.loads(Path(shutil.copytree(cohort.parent, folder, dirs_exist_ok=True) / "dataset.json").read_text())
    held_out = json.loads(others.read_text())
    content["training"], first = content["test"] + content["training"][:1], content["training"][1:]
    content["test"] = first + [
        {
            **case,
            **{key: f"others/{case[key]}" for key in ("image", "label")},
            "case_id": f"o_{case['case_id']}",
            "patient_id": f"o_{case['patient_id']}",
        }
        for case in held_out["training"]
    ]
    (folder / "dataset.json").write_text(json.dumps(content))
    return {"dataset_dir": str(folder)}


@for_bundles_with("audit.yaml", at_most=1)
@pytest.mark.parametrize("weights", ["released", "models"])
def test_an_audit_against_volumes_that_the_weights_never_saw_is_refused(
    weights: str, bundle: Path, clone: Callable[[str], Path], own: dict
) -> None:
    copy = clone(weights)
    line = last_line(copy, "audit.yaml", **own, **SAMPLER)
    assert REFUSED in line and ("came with the bundle" in line) == (weights == "released")
    assert "volumes of the embedded" in line and "of the user's dataset_dir" in line
    assert not (copy / "output" / "audit").exists(), "nothing is left that a filter could take"


@for_bundles_with("audit.yaml", at_most=1)
@pytest.mark.parametrize("weights", ["released", "models"])
def test_an_audit_without_data_takes_the_cohort_that_the_weights_were_trained_on(
    weights: str, bundle: Path, clone: Callable[[str], Path]
) -> None:
    copy = clone(weights)
    run(copy, "audit.yaml", **AUDIT)
    assert json.loads((copy / "output" / "audit" / "audit.json").read_text())["facts"]["trained_on_these"] is True
    note = json.loads((copy / weights / "model.json").read_text())
    note |= {"data": "the user's dataset_dir", "data_sha256": "0", "training_sha256": "0"}
    (copy / weights / "model.json").write_text(json.dumps(note))
    assert REFUSED in last_line(copy, "audit.yaml", **AUDIT), "weights of own data, and no data given"


@for_bundles_with("audit.yaml", at_most=1)
def test_of_weights_that_do_not_say_an_audit_takes_the_users_word(bundle: Path, clone: Callable[[str], Path]) -> None:
    copy = clone("models")
    note = json.loads((copy / "models" / "model.json").read_text())
    (copy / "models" / "model.json").write_text(json.dumps({"knobs": note["knobs"], "spacing": note["spacing"]}))
    run(copy, "audit.yaml", **AUDIT)
    assert "your word alone" in (copy / "output" / "audit" / "audit.md").read_text()


@for_bundles_with("audit.yaml", at_most=1)
@pytest.mark.parametrize("weights", ["released", "models"])
def test_an_evaluation_on_other_data_says_so_first_and_is_not_recorded(
    weights: str, bundle: Path, clone: Callable[[str], Path], own: dict
) -> None:
    copy = clone(weights)
    shutil.rmtree(copy / "output" / "samples")  # made by another sampler
    run(copy, "evaluate.yaml", **own, **EVALUATION)
    folder = copy / "output" / "evaluation"
    assert json.loads((folder / "evaluation.json").read_text())["trained_on_these"] is False
    assert "* The generator was not trained on these data" in (folder / "evaluation.md").read_text()
    assert "The generator was not trained on these data" in (folder / "evaluation.html").read_text()
    before = (copy / "configs" / "metadata.json").read_text()
    line = last_line(copy, "evaluate.yaml", run_id="recording")
    assert "data that the weights were not trained on" in line
    assert (copy / "configs" / "metadata.json").read_text() == before
    run(copy, "evaluate.yaml", **EVALUATION, num_more_held_out=6)
    assert json.loads((folder / "evaluation.json").read_text())["trained_on_these"] is True
    assert "was not trained on these" not in (folder / "evaluation.md").read_text()
