from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlip

from medical_diffusion_components.data import latents as module
from medical_diffusion_components.data.latents import cache_latents, held_out_draws
from medical_diffusion_components.networks.codebook import EMACodebook
from medical_diffusion_components.networks.vqgan import VQGAN
from medical_diffusion_components.transforms.load_latent import RandLoadLatent
from medical_diffusion_components.transforms.rand_scale_intensity import RandScaleAboveBackground
from medical_diffusion_components.transforms.rand_shift import RandShift
from medical_diffusion_components.weights import save_weights


class Cohort:
    """Three small volumes, a first stage with its file, and a count of what was encoded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.encoded = folder, []
        self.cases = [self.case(f"subject/{n}", n) for n in range(3)]
        self.network = VQGAN(EMACodebook(20, 3), base_channels=4, compression=(2, 1, 2), norm_groups=4)
        self.weights = save_weights(self.network, folder / "model_autoencoder.pt", {})

    def case(self, case_id: str, seed: int) -> dict:
        path = self.folder / f"volume_{seed}.npy"
        np.save(path, np.random.default_rng(seed).uniform(-1, 1, (1, 4, 6, 8)).astype(np.float32))
        return {"image": str(path), "case_id": case_id, "patient_id": case_id}

    def preprocessing(self, case: dict) -> dict:
        self.encoded.append(case["case_id"])
        return {"image": torch.from_numpy(np.load(case["image"])), "case_id": case["case_id"]}

    def cache(self, **changes) -> list[dict]:
        """The entries; what was encoded for them stands in ``encoded``."""
        self.encoded.clear()
        arguments = {
            "first_stage": self.network,
            "weights": self.weights,
            "cases": self.cases,
            "preprocessing": self.preprocessing,
            "preprocessing_settings": {"minv": -1.0},
            "folder": self.folder / "latents",
            **changes,
        }
        return cache_latents(**arguments)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return Cohort(tmp_path)


@pytest.mark.parametrize("flip_axis", [0, 1, 2])
def test_latents_are_the_encodings_of_the_image_and_of_its_mirror_image(cohort, flip_axis):
    entries = cohort.cache(flip_axis=flip_axis)
    assert [entry["case_id"] for entry in entries] == [case["case_id"] for case in cohort.cases]
    for case, entry in zip(cohort.cases, entries):
        image = np.load(case["image"])
        views = np.stack([image, np.flip(image, 1 + flip_axis)])
        pair = np.load(entry["image"])
        with torch.no_grad():
            expected = cohort.network.encode_stage_2_inputs(torch.from_numpy(views))
        assert pair.dtype == np.float32 and not np.allclose(pair[0], pair[1])
        np.testing.assert_allclose(pair, expected.numpy(), atol=1e-6)


def test_mirror_image_is_that_of_the_flip_in_the_first_stage(cohort):
    image = torch.from_numpy(np.load(cohort.cases[0]["image"]))
    flipped = RandFlip(prob=1.0, spatial_axis=2)(image).as_tensor()
    with torch.no_grad():
        expected = cohort.network.encode_stage_2_inputs(flipped[None])[0]
    entry = cohort.cache(flip_axis=2)[0]
    torch.testing.assert_close(RandLoadLatent(1.0)(entry["image"]), expected)


def test_every_case_is_encoded_once(cohort):
    first = cohort.cache()
    assert cohort.encoded == ["subject/0", "subject/1", "subject/2"]
    assert cohort.cache() == first and cohort.encoded == []
    assert len({entry["image"] for entry in first}) == 3


def test_an_interrupted_call_goes_on_with_the_cases_that_are_missing(cohort):
    def interrupted(case: dict) -> dict:
        if case["case_id"] == "subject/2":
            raise KeyboardInterrupt
        return cohort.preprocessing(case)

    with pytest.raises(KeyboardInterrupt):
        cohort.cache(preprocessing=interrupted)
    entries = cohort.cache()
    assert cohort.encoded == ["subject/2"]
    Path(entries[1]["image"]).unlink()
    assert cohort.cache() == entries and cohort.encoded == ["subject/1"]


def test_an_interruption_while_writing_leaves_no_file_behind(cohort, monkeypatch):
    def killed(path: Path, array: np.ndarray) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(module.np, "save", killed)
        cohort.cache()
    assert not [path for path in (cohort.folder / "latents").rglob("*") if path.is_file()]


def test_a_damaged_file_is_reported_and_made_again_once_it_is_deleted(cohort):
    path = Path(cohort.cache()[1]["image"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=f"{path.name} is no cached latent .*delete it"):
        RandLoadLatent()(cohort.cache()[1]["image"])
    path.unlink()
    cohort.cache()
    assert path.read_bytes() == whole


# --- the key ---


def new_weights(cohort: Cohort) -> dict:
    with torch.no_grad():
        cohort.network.to_codes.bias += 0.1
    return {"weights": save_weights(cohort.network, cohort.folder / "other.pt", {})}


def new_data(cohort: Cohort) -> dict:
    np.save(cohort.cases[0]["image"], np.zeros((1, 4, 6, 8), np.float32))
    return {}


def renamed_case(cohort: Cohort) -> dict:
    return {"cases": [{**cohort.cases[0], "case_id": "another"}, *cohort.cases[1:]]}


def fewer_cases(cohort: Cohort) -> dict:
    return {"cases": cohort.cases[:2]}


def other_preprocessing(cohort: Cohort) -> dict:
    return {"preprocessing_settings": {"minv": 0.0}}


def other_flip(cohort: Cohort) -> dict:
    return {"flip_axis": 1}


@pytest.mark.parametrize("change", [new_weights, new_data, renamed_case, fewer_cases, other_preprocessing, other_flip])
def test_whatever_changes_the_latents_changes_the_folder(cohort, change: Callable[[Cohort], dict]):
    folder = Path(cohort.cache()[0]["image"]).parent
    entries = cohort.cache(**change(cohort))
    assert Path(entries[0]["image"]).parent != folder and len(cohort.encoded) == len(entries)


def test_names_and_places_of_files_are_no_part_of_the_key(cohort):
    folder = Path(cohort.cache()[0]["image"]).parent
    moved = cohort.weights.rename(cohort.folder / "moved.pt")
    shuffled = cohort.cases[::-1]
    entries = cohort.cache(weights=moved, cases=shuffled)
    assert cohort.encoded == [] and Path(entries[0]["image"]).parent == folder
    assert [entry["case_id"] for entry in entries] == ["subject/2", "subject/1", "subject/0"]


def test_names_of_files_hold_no_case_id(cohort):
    assert not any("subject" in entry["image"].removeprefix(str(cohort.folder)) for entry in cohort.cache())


# --- what is refused ---


def test_values_that_are_not_finite_are_an_error_naming_the_case(cohort):
    cohort.cases[1] = cohort.case("broken", 7)
    np.save(cohort.cases[1]["image"], np.full((1, 4, 6, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"case broken encodes to values that are not finite .*model_autoencoder\.pt"):
        cohort.cache()


@pytest.mark.parametrize("flip_axis", [-1, 3])
def test_axis_of_the_flip_must_be_a_spatial_one(cohort, flip_axis):
    with pytest.raises(ValueError, match=f"flip_axis must be 0, 1 or 2 .* got {flip_axis}"):
        cohort.cache(flip_axis=flip_axis)


def test_held_out_draws_number_every_latent():
    entries = [{"image": "a.npy", "case_id": "a"}, {"image": "b.npy", "case_id": "b"}]
    drawn = held_out_draws(entries, 3)
    assert [(entry["case_id"], entry["draw"], entry["draws"]) for entry in drawn] == [
        ("a", 0, 3), ("a", 1, 3), ("a", 2, 3), ("b", 0, 3), ("b", 1, 3), ("b", 2, 3)
    ]  # fmt: skip
    assert entries[0] == {"image": "a.npy", "case_id": "a"}


def augmentation() -> Compose:
    return Compose([RandScaleAboveBackground((0.5, 0.9)), RandShift(1)])


def test_further_views_are_encodings_of_augmented_volumes_and_all_are_read(cohort):
    plain = np.stack([np.load(entry["image"]) for entry in cohort.cache()])
    entries = cohort.cache(views=3, augmentation=augmentation(), augmentation_settings={"most": 1})
    assert cohort.encoded == [case["case_id"] for case in cohort.cases], "other settings, another folder"
    rows = np.stack([np.load(entry["image"]) for entry in entries])
    assert rows.shape == (3, 6, *plain.shape[2:]) and np.array_equal(rows[:, :2], plain)
    views = rows.reshape(9, 2, -1)[:, 0]
    assert len({view.tobytes() for view in views}) == 9, "each case and view has random numbers of its own"
    for pick, probability in ((0, 0.0), (1, 1.0)):
        load = RandLoadLatent(probability).set_random_state(seed=0)
        read = {load(entries[0]["image"]).numpy().tobytes() for _ in range(40)}
        assert read == {rows[0, 2 * view + pick].tobytes() for view in range(3)}


def test_cases_with_the_same_volume_are_augmented_differently(cohort):
    twins = [cohort.cases[0], {**cohort.cases[0], "case_id": "twin"}]
    entries = cohort.cache(cases=twins, views=2, augmentation=augmentation(), augmentation_settings={})
    one, other = (np.load(entry["image"]) for entry in entries)
    assert np.array_equal(one[:2], other[:2]) and not np.array_equal(one[2:], other[2:])


def test_another_version_encodes_again(cohort, monkeypatch):
    before = {entry["image"] for entry in cohort.cache()}
    monkeypatch.setattr(module, "__version__", "0.0.0")
    assert before.isdisjoint(entry["image"] for entry in cohort.cache()) and len(cohort.encoded) == 3


def test_views_are_the_same_whoever_makes_them(cohort):
    settings = {"views": 2, "augmentation_settings": {}, "folder": cohort.folder / "one"}
    first = np.load(cohort.cache(augmentation=augmentation(), **settings)[2]["image"])
    settings["folder"] = cohort.folder / "other"
    alone = cohort.cache(cases=cohort.cases[2:], augmentation=augmentation(), **settings)
    np.testing.assert_array_equal(np.load(alone[0]["image"]), first)


@pytest.mark.parametrize(("views", "made_by"), [(0, augmentation()), (2, None)])
def test_views_that_cannot_be_made_are_refused(cohort, views, made_by):
    with pytest.raises(ValueError, match=f"an augmentation if there are several, got {views}"):
        cohort.cache(views=views, augmentation=made_by)
