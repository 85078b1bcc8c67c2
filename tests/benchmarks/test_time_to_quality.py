"""Curves of quality against training time: what the recipes are, what a point is, and a run at the smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import time_to_quality
from test_benchmark_commands import ADNI, DIFFUSION_IDS, REPOSITORY, bundle_folders, run

OWN_OPTIONS = {"epochs", "val_interval", "num_embedded_subjects", "num_train_timesteps"}  # 20 steps need more timesteps
RECIPE = time_to_quality.recipe("fast").keys()


def curves(folder: Path, *more: str) -> time_to_quality.Curves:
    return time_to_quality.Curves(time_to_quality.options().parse_args(["--folder", str(folder), *more]))


def test_the_recipes_differ_in_what_their_files_say() -> None:
    fast, paper = time_to_quality.recipe("fast"), time_to_quality.recipe("paper")
    assert fast.keys() == paper.keys() and "epochs" not in fast
    assert (paper["prediction_type"], paper["latent_scaling"], paper["learning_rate"]) == ("epsilon", "min_max", 1e-4)
    assert (fast["prediction_type"], fast["latent_scaling"], fast["learning_rate"]) == ("sample", "per_position", 2e-3)


def test_a_constant_rate_is_trained_once_and_a_falling_one_for_each_length(tmp_path: Path) -> None:
    runs = curves(tmp_path, "--seeds", "3", "--epochs", "100", "50", "--fast_epochs", "50", "25").runs()
    assert [(run.name, list(run.kept)) for run in runs] == [
        ("fast_25_seed3", [25]),
        ("fast_50_seed3", [50]),
        ("paper_100_seed3", [50, 100]),
    ]


def test_a_point_is_a_target_that_was_reached_and_whose_weights_are_there(tmp_path: Path) -> None:
    found = curves(tmp_path, "--seeds", "0", "--epochs", "50", "100", "--fast_epochs", "25")
    folder = tmp_path / "paper_100_seed0"
    (folder / "epoch_50").mkdir(parents=True)
    (folder / "epoch_50" / "model.pt").touch()
    reached = {f"epoch_{epoch}": {"epoch": epoch, "seconds": 60.0 * epoch} for epoch in (50, 100)}
    (folder / "diffusion.json").write_text(json.dumps({"rows": [], "reached": reached, "done": True}))
    assert [(run.name, epoch) for run, epoch, _ in found.points()] == [("paper_100_seed0", 50)]


def test_the_table_has_a_line_for_each_point_by_time_and_says_what_is_missing() -> None:
    def row(recipe: str, seconds: float) -> dict:
        cell = {"value": seconds / 1000, "se": 0.01, "floor": 0.002}
        measures = {column.heading: cell for column in time_to_quality.COLUMNS}
        n = {"synthetic": 45, "reference": 52}
        return {"recipe": recipe, "seed": 0, "iteration": 1200, "seconds": seconds, "n": n, **measures}

    rows = [row("paper", 600.0), row("paper", 60.0), row("fast", 90.0)]
    found = {"rows": rows, "not_run": ["fast_50_seed0"], "minutes_of": "processor", "first_stage_seconds": 120.0}
    text = time_to_quality.make_table(found)
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [(line[0], line[3]) for line in lines[3:]] == [("fast", "1.5"), ("paper", "1.0"), ("paper", "10.0")]
    assert lines[2][4] == "0.002" and lines[3][4] == "0.09 ± 0.01"
    assert "took 2.0 minutes. Not run: fast_50_seed0." in text
    assert time_to_quality.make_table({**found, "rows": []}) == "No point is finished. Not run: fast_50_seed0.\n"


@pytest.mark.slow
def test_the_curves_are_made_at_the_smallest_size_and_again_without_training(tmp_path: Path) -> None:
    small = {id: value for id, value in bundle_folders.tiny(ADNI).items() if id in DIFFUSION_IDS - RECIPE}
    small |= {"image_size": [16, 48, 32], "patch_size": [16, 48, 32]}
    small = {id: value for id, value in small.items() if id not in OWN_OPTIONS}
    command = [str(REPOSITORY / "benchmarks" / "time_to_quality.py"), f"--folder={tmp_path}", "--seeds=0"]
    command += ["--epochs", "1", "--fast_epochs", "1", "--val_interval=1", "--subjects=8", "--more_held_out=4"]
    command += ["--volumes=3", "--set", *(f"{id}={json.dumps(value)}" for id, value in small.items())]
    shown = run(command)
    assert (tmp_path / "time_to_quality.md").read_text().strip() in shown and "Not run: nothing." in shown
    rows = json.loads((tmp_path / "time_to_quality.json").read_text())["rows"]
    assert [(row["recipe"], row["epoch"]) for row in rows] == [("fast", 1), ("paper", 1)]
    assert all(row["seconds"] > 0 and row["n"]["synthetic"] == 3 for row in rows)
    assert (tmp_path / "time_to_quality.png").stat().st_size > 1000
    notes = [
        json.loads((tmp_path / f"{name}_seed0" / "models" / "model.json").read_text()) for name in ("fast_1", "paper_1")
    ]
    assert [note["knobs"]["prediction_type"] for note in notes] == ["sample", "epsilon"]
    again = run(command)
    assert "training" not in again and "judging" not in again
