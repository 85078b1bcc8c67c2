"""An evaluation of too few volumes ends before it computes anything, and says what it needs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medical_diffusion_components.evaluation import GeneratorEvaluation


def cases(count: int, per_patient: int = 1) -> list[dict[str, Any]]:
    return [{"image": f"{number}.nii.gz", "patient_id": number // per_patient} for number in range(count)]


def evaluation(tmp_path: Path, training: list, held_out: list, synthetic: list, **more: Any) -> GeneratorEvaluation:
    reader: Any = SimpleNamespace(spaces={})  # anything else that is asked of it is an error of another kind
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
