"""An evaluation of too few volumes, or of some that cannot be read, ends before it computes anything, and says why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medical_diffusion_components.evaluation import EvaluationPage, GeneratorEvaluation
from medical_diffusion_components.transforms import VolumeError


def cases(count: int, per_patient: int = 1) -> list[dict[str, Any]]:
    return [{"image": f"{number}.nii.gz", "patient_id": number // per_patient} for number in range(count)]


def readable(some: list[dict[str, Any]], description: str) -> None:
    for case in some:
        if case["image"] == "4.nii.gz":
            raise VolumeError(f"{case['image']} while {description}")


def evaluation(tmp_path: Path, training: list, held_out: list, synthetic: list, **more: Any) -> GeneratorEvaluation:
    reader: Any = SimpleNamespace(spaces={}, check=readable)  # all else that is asked of it is an error of another kind
    return GeneratorEvaluation(reader, training, held_out, lambda: synthetic, tmp_path, {"reference": "test"}, **more)


@pytest.mark.parametrize(("held_out", "got"), [(cases(1), "1 of 1"), (cases(6, 2), "6 of 3")])
def test_fewer_than_four_held_out_patients_are_named(held_out: list, got: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"4 or more patients.* got {got}: give dataset_dir more patients under 'test'"
    ):
        evaluation(tmp_path, cases(5), held_out, cases(5))
    evaluation(tmp_path, cases(5), cases(4), cases(5))


def test_a_single_training_volume_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 or more training volumes.* got 1: give dataset_dir more under 'training'"):
        evaluation(tmp_path, cases(1), cases(4), cases(5))


def test_fewer_than_three_volumes_to_judge_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="3 or more synthetic volumes.* got 2: raise --num_volumes, or give more files"
    ):
        evaluation(tmp_path, cases(5), cases(4), cases(2)).run()
    with pytest.raises(ValueError, match="3 or more baseline volumes.* got 1: give more files"):
        evaluation(tmp_path, cases(5), cases(4), cases(3), baseline=cases(1)).run()


def test_volumes_that_cannot_be_read_are_named_before_any_is_drawn_or_the_first_stage_is_measured(
    tmp_path: Path,
) -> None:
    first_stage: Any = SimpleNamespace(run=lambda: pytest.fail("the first stage was measured"))
    with pytest.raises(VolumeError, match="4.nii.gz while reading synthetic volumes"):
        evaluation(tmp_path, cases(5), cases(4), cases(5)).run(first_stage)
    with pytest.raises(VolumeError, match="4.nii.gz while reading baseline volumes"):
        made = evaluation(tmp_path, cases(5), cases(4), [], baseline=cases(5))
        made.synthetic = lambda: pytest.fail("volumes were drawn")
        made.run(first_stage)
    page: Any = SimpleNamespace(compared=cases(5))
    with pytest.raises(VolumeError, match="4.nii.gz while reading compared volumes"):
        evaluation(tmp_path, cases(5), cases(4), [], page=page).run(first_stage)


def test_a_folder_to_compare_with_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected volumes .* in .*nowhere, found none"):
        EvaluationPage(tmp_path / "page.html", "A title", compare_dir=tmp_path / "nowhere")
