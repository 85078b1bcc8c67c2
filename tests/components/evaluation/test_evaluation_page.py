"""Which volumes the page of an evaluation shows."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from medical_diffusion_components.evaluation import AuditedPair, EvaluationPage

SIZE = (2, 3, 4)
# a volume of one level for each case; the feature is the level, so that the nearest is known
LEVELS = {
    "synthetic": [-0.9, -0.3, 0.3, 0.9],
    "training": [-0.8, 0.1, 0.95],
    "reference": [-0.2, 0.4, 0.6, -0.6],
    "reconstructions": [-0.25, 0.45, 0.65, -0.65],
}
CASES = {name: [{"image": level} for level in levels] for name, levels in LEVELS.items()}
ANATOMY = {name: np.array(levels)[:, None] for name, levels in LEVELS.items()}
REPORT = {"rows": {"synthetic": {"volumes": {}}}, "spaces": {}, "what_rows_are": {}}


def read(case: dict) -> torch.Tensor:
    return torch.full((1, *SIZE), case["image"])


def galleries(path: Path) -> list[list[list[float]]]:
    """Gallery -> case -> level of each volume, as it is in the file."""
    text = path.read_text()
    packed = dict(re.findall(r'<script type="text/plain" id="(\w+)">([\w+/=]+)</script>', text))
    levels = {name: gzip.decompress(base64.b64decode(data))[0] / 255 * 2 - 1 for name, data in packed.items()}
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    return [[[levels[v["id"]] for v in case["volumes"]] for case in json.loads(one)] for one in found]


def near(level: float, levels: list[float]) -> float:
    return min(levels, key=lambda other: abs(other - level))


def page(folder: Path, seed: int = 0, notice: str | None = None, without: str = "") -> Path:
    cases = {name: some for name, some in CASES.items() if name != without}
    return EvaluationPage(folder / "page.html", "A title", notice=notice)(REPORT, cases, ANATOMY, read, seed)


def test_each_sample_stands_beside_its_nearest_training_and_held_out_volume(tmp_path: Path) -> None:
    samples, closest, _ = galleries(page(tmp_path))
    assert sorted(round(case[0], 1) for case in samples) == LEVELS["synthetic"], "each once"
    for sample, training, held_out in samples:
        assert training == pytest.approx(near(sample, LEVELS["training"]), abs=0.01)
        assert held_out == pytest.approx(near(sample, LEVELS["reference"]), abs=0.01)
    apart = [abs(sample - training) for sample, training in closest]
    assert apart == sorted(apart) and apart[0] == pytest.approx(0.05, abs=0.01)


def test_a_reconstruction_stands_beside_its_own_volume(tmp_path: Path) -> None:
    *_, found = galleries(page(tmp_path))
    expected = list(zip(LEVELS["reference"], LEVELS["reconstructions"]))
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert len(galleries(page(tmp_path, without="reconstructions"))) == 2


def test_samples_are_drawn_by_the_seed(tmp_path: Path) -> None:
    orders = {seed: [case[0] for case in galleries(page(tmp_path, seed))[0]] for seed in (0, 1, 2, 0)}
    assert galleries(page(tmp_path, 0))[0][0][0] == orders[0][0]
    assert len({tuple(order) for order in orders.values()}) > 1
    assert "(seed 2)" in page(tmp_path, 2).read_text()


def test_a_page_of_somebodys_volumes_says_how_to_handle_it(tmp_path: Path) -> None:
    assert "holds training and held-out volumes" in page(tmp_path).read_text()
    told = page(tmp_path, notice="These are not patients").read_text()
    assert "These are not patients" in told and "holds training and held-out volumes" not in told


def rows(path: Path) -> dict[str, list[np.ndarray]]:
    """Heading of a row -> its pictures, two for each volume."""
    parts = re.findall(r'<h3>([^<]*)</h3><div class="tiles">(.*?)</div></div>', path.read_text())
    pictures = {name: re.findall(r"base64,([\w+/=]+)", part) for name, part in parts}
    return {
        name: [imread(io.BytesIO(base64.b64decode(one)))[..., 0] for one in some] for name, some in pictures.items()
    }


def test_samples_stand_above_held_out_volumes_and_what_they_are_compared_with(tmp_path: Path) -> None:
    (tmp_path / "a_night").mkdir()
    for number in range(3):
        image = nib.Nifti1Image(np.zeros(SIZE, np.float32), np.eye(4))
        nib.save(image, tmp_path / "a_night" / f"{number}.nii")

    def read_any(case: dict) -> torch.Tensor:
        return torch.zeros((1, *SIZE)) if isinstance(case["image"], str) else read(case)

    made = EvaluationPage(tmp_path / "page.html", "A title", compare_dir=tmp_path / "a_night")
    found = rows(made(REPORT, CASES, ANATOMY, read_any))
    assert list(found) == ["samples", "compared with: a night", "held-out volumes"]
    assert [len(pictures) for pictures in found.values()] == [8, 6, 8]
    assert [one.shape for one in found["samples"][:2]] == [(4, 3), (3, 2)], "sagittal, axial"
    levels = sorted({float(picture[0, 0]) * 2 - 1 for picture in found["samples"]})
    np.testing.assert_allclose(levels, LEVELS["synthetic"], atol=0.01)
    shown = [case[0] for case in galleries(made.path)[0]]
    np.testing.assert_allclose([p[0, 0] * 2 - 1 for p in found["samples"][::2]], shown, atol=0.01)
    baseline = {**CASES, "baseline": CASES["training"]}
    assert list(rows(EvaluationPage(tmp_path / "b.html", "A title")(REPORT, baseline, ANATOMY, read))) == [
        "samples", "samples of the baseline", "held-out volumes",
    ]  # fmt: skip


def test_the_pairs_of_an_audit_take_the_place_of_those_that_look_alike(tmp_path: Path) -> None:
    ramp = np.linspace(-1, 1, 24, dtype=np.float32).reshape(SIZE)
    volumes = {"ours": ramp, "theirs": ramp[:, ::-1], "other": 0.9 * ramp}  # H points to the front, W to the left

    def read_any(case: dict) -> torch.Tensor:
        return torch.from_numpy(volumes[case["image"]].copy())[None] if case["image"] in volumes else read(case)

    pairs = [
        AuditedPair({"image": "ours"}, {"image": "theirs"}, "copy; similarity 0.999, p = 0.01"),
        AuditedPair({"image": "ours"}, {"image": "other"}, "withheld; similarity 0.9, p = 0.05"),
    ]
    made = EvaluationPage(tmp_path / "page.html", "A title", axcodes="ALS")
    text = made(REPORT, CASES, ANATOMY, read_any, 0, pairs).read_text()
    found = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)[1])
    first, second = (case["volumes"] for case in found)
    assert [case["text"] for case in found] == [pair.text for pair in pairs]
    assert [one["name"] for one in first] == ["synthetic", "nearest training volume, mirrored", "difference"]
    assert first[1]["id"] == first[0]["id"], "the mirror image is the same volume"
    assert [one["name"] for one in second] == ["synthetic", "nearest training volume", "difference"]
    assert (second[2]["id"], second[2]["minus"]) == (second[0]["id"], second[1]["id"])


def test_what_an_audit_found_by_condition_is_a_table_of_the_page(tmp_path: Path) -> None:
    table = [["asked for", "flagged"], ["size < 3 mm; sex F", "1 of 8"]]
    made = EvaluationPage(tmp_path / "page.html", "A title")
    text = made(REPORT, CASES, ANATOMY, read, by_condition={"text": "How to read it.", "table": table}).read_text()
    assert "<h2>Copies by condition</h2><p>How to read it.</p>" in text
    assert "<tr><th>asked for</th><th>flagged</th></tr><tr><th>size &lt; 3 mm; sex F</th><td>1 of 8</td></tr>" in text
    assert "Copies by condition" not in made(REPORT, CASES, ANATOMY, read).read_text()


def test_noisy_volumes_are_fewer_so_that_the_page_stays_below_ten_megabytes(tmp_path: Path) -> None:
    """Levels drawn at random do not pack at all; 64x64x64 of one level pack to nothing."""

    def shown(noise: float) -> tuple[int, float]:
        def drawn(case: dict) -> torch.Tensor:
            rng = np.random.default_rng(case["image"])
            return torch.from_numpy(noise * rng.uniform(-1, 1, (1, 64, 64, 64)).astype(np.float32))

        cases = {name: [{"image": [place, number]} for number in range(14)] for place, name in enumerate(LEVELS)}
        anatomy = {name: np.arange(14.0)[:, None] + place / 9 for place, name in enumerate(LEVELS)}
        path = EvaluationPage(tmp_path / "page.html", "A title")(REPORT, cases, anatomy, drawn)
        return path.read_text().count('"sample '), path.stat().st_size / 1e6

    assert shown(0.0)[0] == 8
    samples, megabytes = shown(1.0)
    assert 2 <= samples < 8 and 5 < megabytes < 10
