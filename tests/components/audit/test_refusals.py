"""Audits that would say something false do not run, and say why."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.audit import AuditError, refusals
from medical_diffusion_components.audit.volumes import AuditedVolumes, Preprocessing, one_case_per_patient, read_volumes
from medical_diffusion_components.weights import save_weights


def volumes(names: list[str], reduced: torch.Tensor | None = None, prefix: str = "") -> AuditedVolumes:
    cases = [{"image": f"{name}.nii.gz", "case_id": name, "patient_id": name} for name in names]
    hashes = [f"{prefix}{name}" for name in names]
    return AuditedVolumes(cases, hashes, torch.zeros(len(names), 1, 4, 4, 4) if reduced is None else reduced)


@pytest.mark.parametrize(("folder", "came"), [("models", ""), ("released", "came with the bundle and ")])
def test_training_volumes_that_the_weights_never_saw_are_refused(folder: str, came: str, tmp_path: Path) -> None:
    seen = {"data": "user's data", "cases": {"training": 8}, "data_sha256": "a" * 64, "training_sha256": "b" * 64}
    other = seen | {"cases": {"training": 5}, "data_sha256": "c" * 64, "training_sha256": "d" * 64}
    (tmp_path / folder).mkdir()
    weights = save_weights(torch.nn.Linear(1, 1), tmp_path / folder / "model.pt", seen)
    assert refusals.check_training_data(weights, seen) is True
    trained = rf"^the weights {came}were trained on 8 volumes of the .* \(SHA-256 b{{16}}\.\.\.\)"
    at_hand = r"the training volumes at hand are 5 volumes of the .* \(SHA-256 d{16}\.\.\.\): this generator has never"
    with pytest.raises(AuditError, match=f"{trained}, and {at_hand}"):
        refusals.check_training_data(weights, other)
    unknown = save_weights(torch.nn.Linear(1, 1), tmp_path / folder / "unknown.pt", {})
    assert refusals.check_training_data(unknown, other) is False, "nobody knows"


def test_eighteen_held_out_patients_are_too_few_and_nineteen_are_not() -> None:
    with pytest.raises(AuditError, match=r"at least 19 held-out patients, got 18.*1/19"):
        refusals.check_calibration_size(18, 0.05)
    refusals.check_calibration_size(19, 0.05)


def test_a_patient_on_both_sides_is_refused_and_not_named() -> None:
    with pytest.raises(AuditError, match=r"1 patient\(s\) are in the training split and among") as caught:
        refusals.check_disjoint(volumes(["mary", "john"]), volumes(["anna", "john"], prefix="x"))
    assert "john" not in str(caught.value)


def test_a_file_on_both_sides_under_another_name_is_refused() -> None:
    held_out = volumes(["anna", "other"])
    held_out.hashes[1] = "mary"
    with pytest.raises(AuditError, match=r"1 file\(s\) are in the training split"):
        refusals.check_disjoint(volumes(["mary", "john"]), held_out)


@pytest.mark.parametrize("change", [lambda x: 0.6 * x - 0.4, lambda x: x.clamp(min=-0.5), lambda x: x**3])
def test_intensities_prepared_in_another_way_are_refused(change) -> None:
    def drawn(count: int) -> torch.Tensor:
        return (torch.randn(count, 1, 6, 6, 6) * (0.3 + 0.1 * torch.rand(count, 1, 1, 1, 1)) - 0.3).clamp(-1, 1)

    training = volumes([str(n) for n in range(40)], drawn(40))
    refusals.check_preprocessed_alike(training, volumes([f"h{n}" for n in range(30)], drawn(30)))
    changed = volumes([f"h{n}" for n in range(30)], change(drawn(30)))
    with pytest.raises(AuditError, match="prepared in another way") as said:
        refusals.check_preprocessed_alike(training, changed)
    mean, other = (np.median(side.reduced.flatten(1).mean(1)) for side in (training, changed))
    if "mean intensity" in str(said.value):
        assert f"{mean:.3g} in training and {other:.3g} in held-out volumes" in str(said.value)


def test_a_background_of_another_grey_is_refused_by_its_share() -> None:
    """Mean and deviation differ in nothing that the test sees."""
    generator = torch.Generator().manual_seed(0)
    training = (torch.randn(40, 1, 6, 6, 6, generator=generator) * 0.2).clamp(-1, 1)
    held_out = (torch.randn(30, 1, 6, 6, 6, generator=generator) * 0.2).clamp(-1, 1)
    training[..., 0, 0], held_out[..., 0, 0] = -0.92, -0.88
    names = [str(n) for n in range(70)]
    with pytest.raises(AuditError, match="the share of background is 0.0278 in training and 0 in held-out"):
        refusals.check_preprocessed_alike(volumes(names[:40], training), volumes(names[40:], held_out))


def test_repeated_scans_of_the_same_patients_are_no_evidence() -> None:
    """Twelve patients with ten scans each differ from thirty others no more surely than twelve volumes do."""
    generator = torch.Generator().manual_seed(3)

    def drawn(count: int) -> torch.Tensor:
        spread = 0.3 + 0.2 * torch.rand(count, 1, 1, 1, 1, generator=generator)
        return (torch.randn(count, 1, 6, 6, 6, generator=generator) * spread - 0.3).clamp(-1, 1)

    held_out = volumes([f"h{n}" for n in range(30)], drawn(30))
    for _ in range(20):
        once = volumes([str(n) for n in range(12)], drawn(12))
        names = [f"{n} {scan}" for n in range(12) for scan in range(10)]
        repeated = volumes(names, once.reduced.repeat_interleave(10, 0))
        for case in repeated.cases:
            case["patient_id"] = case["case_id"].split()[0]
        refusals.check_preprocessed_alike(once, held_out)
        refusals.check_preprocessed_alike(repeated, held_out)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(AuditError, match=r"\(1, 4, 4, 4\) after reduction, held-out ones \(1, 4, 4, 5\)"):
        refusals.check_preprocessed_alike(volumes(["a"]), volumes(["b"], torch.zeros(1, 1, 4, 4, 5)))


def test_sets_without_a_volume_or_of_two_sizes_and_a_damaged_cache_are_named(tmp_path: Path) -> None:
    sides = {"a": 4, "b": 4, "c": 6}
    for name in sides:
        (tmp_path / name).write_text(name)
    cases = [{"image": str(tmp_path / name), "case_id": name, "patient_id": name} for name in sides]
    read = Preprocessing(lambda case: {"image": torch.zeros(1, 4, 4, sides[case["case_id"]])}, "none")
    with pytest.raises(ValueError, match="held out: expected volumes, found none"):
        read_volumes([], read, tmp_path / "cache", "held out")
    with pytest.raises(
        ValueError, match=r"training: expected volumes of one size, got the sizes \[\(1, 4, 4, 4\), \(1"
    ):
        read_volumes(cases, read, tmp_path / "cache", "training")
    assert len(read_volumes(cases[:2], read, tmp_path / "cache", "training").cases) == 2
    cached = sorted((tmp_path / "cache").glob("*.npy"))
    assert len(cached) == 3
    for file in cached:
        file.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"cache/\w+.npy is not a cached volume \(.*\): delete it, and it is made again"
    ):
        read_volumes(cases[:2], read, tmp_path / "cache", "training")


def write(path: Path, spacing: tuple[float, float, float]) -> dict:
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.diag([*spacing, 1.0])), path)
    return {"image": str(path), "case_id": path.name}


def bodies(count: int, first: int = 0) -> torch.Tensor:
    """A bright block nearer to one end of each axis, of another texture in each volume, (N, 1, 10, 12, 12)."""
    volumes = -torch.ones(count, 1, 10, 12, 12)
    for number, volume in enumerate(volumes):
        texture = gaussian_filter(np.random.default_rng(first + number).normal(size=(7, 5, 7)), 1)
        volume[0, 2:9, 1:6, 4:11] = torch.from_numpy(0.5 + 0.5 * texture)
    return volumes


@pytest.mark.parametrize(
    ("turn", "way"),
    [
        (lambda some: some.flip(3), "mirrored along W"),
        (lambda some: some.flip(2, 4), "mirrored along H and D"),
        (lambda some: -some, "with inverted intensities"),
        (lambda some: some.transpose(3, 4), "with the axes HDW"),
    ],
)
def test_volumes_that_lie_otherwise_than_in_training_are_seen(turn, way: str) -> None:
    training, drawn = bodies(20), bodies(6, first=20)
    assert refusals.check_orientation(training, drawn) == []
    with pytest.raises(AuditError, match=f"6 of 6 synthetic volumes resemble the training volumes far better {way} "):
        refusals.check_orientation(training, turn(drawn))
    assert len(refusals.check_orientation(training, torch.cat([drawn, turn(drawn)]))) == 1, "half of them"
    (remark,) = refusals.check_orientation(training, torch.cat([drawn, turn(drawn[:2])]))
    assert remark.startswith(f"2 of 8 synthetic volumes resemble the training volumes far better {way} (correlation")


def test_volumes_mirrored_as_in_training_and_noise_do_not_lie_otherwise() -> None:
    training, drawn = bodies(20), bodies(6, first=20)
    assert refusals.check_orientation(training, drawn.flip(3), flip_axis=1) == []
    with pytest.raises(AuditError, match="mirrored along"):
        refusals.check_orientation(training, drawn.flip(4), flip_axis=1)
    assert refusals.check_orientation(training, torch.randn(drawn.shape, generator=torch.manual_seed(0))) == []


def test_synthetic_volumes_of_another_size_are_refused() -> None:
    with pytest.raises(
        AuditError, match=r"training volumes are \(1, 4, 4, 4\) after reduction, synthetic ones \(1, 4, 4, 5"
    ):
        refusals.check_orientation(torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 5))


def test_other_voxels_are_refused(tmp_path: Path) -> None:
    training = [write(tmp_path / f"{n}.nii.gz", (1.0, 2.0, 3.0 + n / 10)) for n in range(3)]
    refusals.check_spacing(training, [write(tmp_path / "s.nii.gz", (1.05, 2.0, 3.1))], "RAS", "synthetic volumes")
    with pytest.raises(
        AuditError, match=r"synthetic volumes have voxels of 1 x 2 x 1 mm.* 1 x 2 x 3 to 1 x 2 x 3.2 mm"
    ):
        refusals.check_spacing(training, [write(tmp_path / "t.nii.gz", (1.0, 2.0, 1.0))], "RAS", "synthetic volumes")
    with pytest.raises(AuditError, match="have voxels of 1 x 2 x 3.6 mm"):
        refusals.check_spacing(training, [write(tmp_path / "u.nii.gz", (1.0, 2.0, 3.6))], "RAS", "synthetic volumes")
    with pytest.raises(AuditError, match=r"have voxels of 2 x 3 x 1 mm.* from 3 x 2 x 1 to 3.2 x 2 x 1 mm"):
        refusals.check_spacing(training, [write(tmp_path / "v.nii.gz", (1.0, 3.0, 2.0))], "SAR", "synthetic volumes")


def test_volumes_of_another_generator_are_refused(tmp_path: Path) -> None:
    cases = [write(tmp_path / f"{n}.nii.gz", (1, 1, 1)) for n in range(3)]
    (tmp_path / "0.json").write_text(json.dumps({"weights_sha256": "ab"}))
    refusals.check_weights(cases, "ab")
    (tmp_path / "2.json").write_text(json.dumps({"weights_sha256": "cd"}))
    with pytest.raises(AuditError, match="1 of 3 synthetic volumes were made by other weights"):
        refusals.check_weights(cases, "ab")


def test_one_case_of_each_patient_and_not_always_the_left_one() -> None:
    cases = [{"case_id": f"{n}_{side}", "patient_id": str(n)} for n in range(40) for side in ("left", "right")]
    chosen = one_case_per_patient(cases)
    assert sorted(case["patient_id"] for case in chosen) == sorted(str(n) for n in range(40))
    assert 8 < sum(case["case_id"].endswith("left") for case in chosen) < 32
    assert one_case_per_patient(cases[::-1]) == chosen


def written(folder: Path, **volumes_of: np.ndarray) -> list[dict]:
    folder.mkdir(exist_ok=True)
    for name, voxels in volumes_of.items():
        nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels, np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    return [{"image": str(folder / f"{name}.nii.gz"), "case_id": name} for name in volumes_of]


def scan(seed: int) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(seed).normal(size=(24, 22, 20)), 1).astype(np.float32)


AMONG = {  # what lies among the samples -> what the audit says of it
    "nothing odd": ({}, None, None),
    "a held-out scan": (
        {"x": scan(4)},
        "1 of 4 synthetic volumes are scans of held-out patients, the first is x",
        None,
    ),
    "a held-out scan, mirrored": ({"x": scan(5)[::-1]}, "scans of held-out patients, the first is x", None),
    "a held-out scan, cut": ({"x": scan(5)[3:, :18]}, "scans of held-out patients, the first is x", None),
    "a held-out scan, rescaled": ({"x": scan(5) * 9 + 4}, "scans of held-out patients, the first is x", None),
    "a training scan": ({"x": scan(1)}, None, "1 of 4 synthetic volumes are scans of training patients themselves"),
    "a training scan, rescaled": ({"x": scan(1) * 9 + 4}, None, "1 of 4 synthetic volumes are scans of training"),
    "one volume twice": ({"x": scan(11)}, None, "1 of 4 synthetic volumes are the same file as another one"),
}


@pytest.mark.parametrize("kind", AMONG)
def test_real_and_repeated_volumes_among_the_samples_are_seen(kind: str, tmp_path: Path) -> None:
    added, refusal, remark = AMONG[kind]
    training = written(tmp_path / "training", **{f"t{seed}": scan(seed) for seed in range(3)})
    held_out = written(tmp_path / "held_out", **{f"h{seed}": scan(seed) for seed in range(3, 6)})
    samples = written(tmp_path / "samples", **{f"s{seed}": scan(seed) for seed in range(10, 13)}, **added)
    for case in samples:
        Path(case["image"].replace(".nii.gz", ".json")).write_text('{"weights_sha256": "a"}')
    if refusal:
        with pytest.raises(AuditError, match=refusal):
            refusals.remarks_on_samples(samples, training, held_out)
        return
    found = refusals.remarks_on_samples(samples, training, held_out)
    assert len(found) == (remark is not None) and (remark is None or found[0].startswith(remark))
    assert not any(case["case_id"] in " ".join(found).split() for case in (*training, *samples))


def test_volumes_that_nobody_says_who_made_are_counted(tmp_path: Path) -> None:
    samples = written(tmp_path / "samples", a=scan(0), b=scan(1))
    (remark,) = refusals.remarks_on_samples(samples, [], [])
    assert remark.startswith("2 of 2 synthetic volumes have no note that says who made them")
