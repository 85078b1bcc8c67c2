"""The comparison of the GAN with diffusion: what its targets, its meter and its table say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import gan_comparison
import metered_training
import pytest
import torch
from test_benchmark_commands import ADNI, GAN, REPOSITORY, bundle_folders, run

from medical_diffusion_components.weights import save_weights


def row(generator: str, at: str, seed: int, value: float) -> dict:
    cell = {"value": value, "se": 0.25, "floor": 0.01}
    spaces = {f"slices_{plane}": dict.fromkeys(("kid", "mmd", "fd"), cell) for plane in ("yz", "zx", "random")}
    spaces["slices_random"] = {name: {**cell, "value": 1000.0} for name in ("kid", "mmd", "fd")}
    spaces["anatomy"] = dict.fromkeys(("kid", "mmd", "fd"), cell)
    spaces["volumes"] = {"ms_ssim": {**cell, "value": value / 10, "real": 0.625}}
    n = {"training": 45, "synthetic": 24, "reference": 53}
    return {"generator": generator, "at": at, "seed": seed, "seconds": 90.0, "volumes": 1234, "n": n, "spaces": spaces}


RESULT = {
    "scale": "demo",
    "image_size": [64, 64, 64],
    "parameters_in_millions": {"adni_gan": {"network": 37.42}},
    "rows": [row("diffusion", "", 0, 1.0), row("alpha-WGAN, group norm", "equal volumes seen", 0, 2.0)],
    "not_run": ["gan_group_1"],
    "minutes_of": "processor",
    "changed_settings": {"adni_ldm": {"epochs": 25}, "adni_gan": {}},
}


def table_rows(result: dict) -> list[list[str]]:
    lines = [line for line in gan_comparison.make_table(result).splitlines() if line.startswith("|")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def test_a_single_seed_has_the_error_over_volumes() -> None:
    header, _, real, diffusion, gan = table_rows(RESULT)
    assert diffusion[:4] == ["diffusion", "0", "1,234", "1.5"] and header[3] == "processor minutes"
    assert table_rows({**RESULT, "minutes_of": "clock"})[0][3] == "clock minutes"
    assert gan[0] == "alpha-WGAN, group norm, equal volumes seen"
    shown = dict(zip(header, gan))
    assert shown["KID, slices"] == "2 ± 0.2" and shown["MS-SSIM of pairs"] == "0.2 ± 0.2"
    assert dict(zip(header, real))["MS-SSIM of pairs"] == "0.625" and dict(zip(header, real))["FD, anatomy"] == "0.01"


def test_several_seeds_have_their_own_spread() -> None:
    more = [row("diffusion", "", seed, value) for seed, value in ((1, 2.0), (2, 3.0))]
    lines = table_rows({**RESULT, "rows": [RESULT["rows"][0], *more, RESULT["rows"][1]]})
    assert [line[0] for line in lines[3:]] == ["diffusion", "alpha-WGAN, group norm, equal volumes seen"]
    assert lines[3][1] == "0, 1, 2" and lines[3][4] == "2 ± 1"


def test_the_table_says_what_was_not_run_and_how_large_the_networks_are() -> None:
    text = gan_comparison.make_table(RESULT)
    assert (
        "Changed settings: epochs 25. Not run: gan_group_1." in text
        and "network 37.42" in text
        and "24 samples against 53 held-out" in text
    )
    assert "Not run: nothing." in gan_comparison.make_table({**RESULT, "not_run": []})
    assert gan_comparison.make_table({**RESULT, "rows": []}) == "No training is finished. Not run: gan_group_1.\n"


def engine(iteration: int) -> SimpleNamespace:
    found = SimpleNamespace(state=SimpleNamespace(iteration=iteration, epoch=iteration // 5), ended=False)
    found.terminate = lambda: setattr(found, "ended", True)
    return found


@pytest.fixture
def meter_file(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_text("first")
    (tmp_path / "models" / "model.json").write_text("{}")
    weights = str(tmp_path / "models" / "model.pt")
    notes = {"rows": [], "reached": {}, "done": False, "batch_size": 4, "weights": weights}
    (tmp_path / "gan.json").write_text(json.dumps({**notes, "targets": {"volumes": 40, "seconds": 100.0}}))
    return tmp_path / "gan.json"


def test_weights_are_kept_at_each_target_and_the_later_one_ends_the_training(
    meter_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([30.0, 60.0, 120.0])
    monkeypatch.setattr(metered_training, "clock", lambda: next(seconds))
    meter, ended = metered_training.Meter(str(meter_file)), []
    for iteration in (5, 10, 15):
        (meter_file.parent / "models" / "model.pt").write_text(f"weights of {iteration}")
        now = engine(iteration)
        meter.begin(now)
        meter(now)
        ended.append(now.ended)
    assert ended == [False, False, True]
    assert (meter_file.parent / "volumes" / "model.pt").read_text() == "weights of 10"
    assert (meter_file.parent / "seconds" / "model.pt").read_text() == "weights of 15"
    reached = json.loads(meter_file.read_text())["reached"]
    assert reached["volumes"]["volumes"] == 40 and reached["seconds"]["seconds"] == 120.0


def test_a_resumed_training_goes_on_counting_where_its_checkpoint_was(
    meter_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = json.loads(meter_file.read_text())
    rows = [{"iteration": i, "seconds": s, "volumes": 4 * i} for i, s in ((2, 20.0), (4, 50.0))]
    meter_file.write_text(json.dumps({**notes, "rows": rows}))
    monkeypatch.setattr(metered_training, "clock", lambda: 7.0)
    meter = metered_training.Meter(str(meter_file))
    meter.begin(engine(2))  # the epoch that ended at 4 was lost with its process
    meter(engine(4))
    assert [row["seconds"] for row in json.loads(meter_file.read_text())["rows"]] == [20.0, 27.0]


def arguments(tmp_path: Path, *weights: str, subjects: int = 8):
    given = ["--folder", str(tmp_path), "--subjects", str(subjects), "--weights", *weights]
    return gan_comparison.Comparison(gan_comparison.options().parse_args(given))


def finished(tmp_path: Path, subjects: int) -> str:
    (tmp_path / "model.pt").write_bytes(b"weights")
    note = {"cases": {"training": 6}, "knobs": {"num_embedded_subjects": subjects}}
    (tmp_path / "model.json").write_text(json.dumps(note))
    return f"adni_gan={tmp_path / 'model.pt'}"


def test_finished_weights_are_judged_and_nothing_is_trained(tmp_path: Path) -> None:
    comparison = arguments(tmp_path, finished(tmp_path, 8))
    (found,) = comparison.generators()
    assert comparison.runs() == [] and found.bundle == "adni_gan" and found.kind.startswith("alpha-WGAN, finished")
    judged = {**row(found.kind, "", 0, 3.0), **comparison.history(found)}
    del judged["seed"], judged["volumes"], judged["seconds"]
    shown = table_rows({**RESULT, "rows": [judged], "not_run": []})[-1]
    assert shown[1:4] == ["", "of 6 training volumes", ""] and shown[4] == "3 ± 0.2"


def test_finished_weights_that_may_have_seen_the_test_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a cohort of 9 subjects: give --subjects 9, got 8"):
        list(arguments(tmp_path, finished(tmp_path, 9)).generators())
    with pytest.raises(ValueError, match="expected adni_ldm or adni_gan and a file"):
        list(arguments(tmp_path, "duke_ldm=nothing.pt").generators())


def tiny_weights(bundle: Path, config: str, folder: Path, subjects: int) -> str:
    """Untrained weights of a bundle, with the note that a training leaves."""
    settings = bundle_folders.tiny(bundle, image_size=[16, 48, 32])
    parser = bundle_folders.workflow(bundle, config, **settings, models_dir=str(folder)).parser
    knobs = {**parser.get_parsed_content("knobs"), "num_embedded_subjects": subjects}
    note = {"data": "embedded template cohort", "cases": {"training": 3 * subjects // 4}, "knobs": knobs}
    torch.manual_seed(0)
    path = save_weights(parser.get_parsed_content("network_def"), folder / "model.pt", note)
    return f"{bundle.name}={path}"


@pytest.mark.slow
def test_finished_weights_of_both_bundles_are_compared_by_one_command(tmp_path: Path) -> None:
    """As somebody does who has downloaded weights: no knob is given but the sizes; the second time, nothing is made."""
    weights = [
        tiny_weights(ADNI, "edit.yaml", tmp_path / "own" / "ldm", 8),
        tiny_weights(GAN, "inference.json", tmp_path / "own" / "gan", 6),
    ]
    folder = tmp_path / "compared"
    parts = [str(REPOSITORY / "benchmarks" / "gan_comparison.py"), f"--folder={folder}", "--subjects=8"]
    parts += ["--image_size", "16", "48", "32", "--more_held_out=4", "--volumes=3", "--weights", *weights]
    shown = run(parts, tmp_path)
    result = json.loads((folder / "gan_comparison.json").read_text())
    diffusion, gan = result["rows"]
    assert diffusion["generator"].startswith("diffusion, finished weights ")
    assert (diffusion["trained_on"], gan["trained_on"]) == (6, 4)
    assert all(row["n"]["synthetic"] == 3 and row["n"] == gan["n"] for row in result["rows"])
    assert len(list((folder / "samples").glob("*/*.nii.gz"))) == 6 and (folder / "gan_comparison.png").is_file()
    assert (folder / "gan_comparison.md").read_text().strip() in shown and "Not run: nothing." in shown
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    again = run(parts, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")} == made
    assert json.loads((folder / "gan_comparison.json").read_text()) == result and "sampling" not in again
