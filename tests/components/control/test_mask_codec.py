"""Label maps become latents by principal components and come back; what is lost is what a decomposition by SVD leaves."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medical_diffusion_components.control import MaskCodec, MaskDistancesd, fitted_codec, mask_codec
from medical_diffusion_components.weights import load_weights, save_weights

BLOCK = (2, 3, 1)


def labels(seed: int) -> np.ndarray:
    """8 x 6 x 4 voxels of three classes."""
    rng = np.random.default_rng(seed)
    volume = np.zeros((8, 6, 4), np.uint8)
    volume[1 : 5 + rng.integers(3), 1:5, :3] = 1
    volume[2 : 3 + rng.integers(1, 3), 2:4, 1:] = 2
    return volume


def distances(seed: int, reach: float = 4.0) -> torch.Tensor:
    return MaskDistancesd("label", 3, reach, (1.0, 2.0, 3.0))({"label": labels(seed)[None]})["image"]


def fitted(channels: int, kept_variance: float = 1.0) -> MaskCodec:
    codec = MaskCodec(3, BLOCK, channels)
    codec.fit((distances(seed) for seed in range(12)), kept_variance)
    return codec


def rows(volume: torch.Tensor) -> np.ndarray:
    """Blocks (N, 18), cut out one by one."""
    found = []
    for h in range(0, 8, 2):
        for w in range(0, 6, 3):
            found += [volume[:, h : h + 2, w : w + 3, d].reshape(-1).numpy() for d in range(4)]
    return np.array(found, np.float64)


def test_the_deepest_class_of_a_voxel_is_its_label() -> None:
    for seed in range(5):
        np.testing.assert_array_equal(distances(seed).argmax(0).numpy(), labels(seed))


def test_distances_are_in_mm_and_end_at_the_reach() -> None:
    volume = np.zeros((1, 1, 1, 6), np.uint8)
    volume[..., 3:] = 1
    found = MaskDistancesd("label", 2, 6.0, (9.0, 9.0, 2.0))({"label": volume})["image"]
    expected = torch.tensor([-5, -3, -1, 1, 3, 5]) / 6  # mm from the face between the two, over the reach
    torch.testing.assert_close(found[1, 0, 0], expected)
    torch.testing.assert_close(found[0, 0, 0], -expected)
    with pytest.raises(ValueError, match="expected a reach of distances above 0 mm, got 0"):
        MaskDistancesd("label", 2, 0, (1, 1, 1))


def test_with_all_components_nothing_is_lost() -> None:
    codec, volume = fitted(18), distances(3)[None]
    torch.testing.assert_close(codec.decode_stage_2_outputs(codec.encode_stage_2_inputs(volume)), volume)


def test_what_few_components_lose_is_what_a_singular_value_decomposition_leaves() -> None:
    codec = fitted(4)
    volumes = torch.stack([distances(seed) for seed in range(12)])
    back = codec.decode_stage_2_outputs(codec.encode_stage_2_inputs(volumes))
    blocks = np.concatenate([rows(volume) for volume in volumes])
    values = np.linalg.svd(blocks - blocks.mean(0), compute_uv=False)
    assert float((back - volumes).square().sum()) == pytest.approx(float((values[4:] ** 2).sum()), rel=1e-4)


def test_latents_have_the_shape_that_is_said() -> None:
    codec = fitted(4)
    assert codec.latent_shape((8, 6, 4)) == (4, 4, 2, 4)
    assert codec.encode_stage_2_inputs(distances(0)[None]).shape[1:] == (4, 4, 2, 4)
    for use in (codec.latent_shape, lambda size: codec.encode_stage_2_inputs(torch.zeros(1, 3, *size)),
                lambda size: codec.fit([torch.zeros(3, *size)])):  # fmt: skip
        with pytest.raises(ValueError, match=r"8, 7, 4.* must be divisible by .*2, 3, 1"):
            use((8, 7, 4))


def test_there_are_no_more_components_than_vary_or_than_are_enough() -> None:
    assert fitted(100).channels <= 18
    blocks = np.concatenate([rows(distances(seed)) for seed in range(12)])
    variances = np.linalg.svd(blocks - blocks.mean(0), compute_uv=False) ** 2
    share = variances.cumsum() / variances.sum()
    assert fitted(100, 0.9).channels == int((share < 0.9).sum()) + 1
    codec = MaskCodec(2, (1, 1, 1), 8)  # of two classes one is the other's negative
    codec.fit([distances(seed)[[0, 0]] * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1) for seed in range(3)])
    assert codec.channels == 1


def test_masks_of_one_class_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="the label maps are all of one class"):
        MaskCodec(2, (1, 1, 1), 2).fit([torch.ones(2, 2, 2, 2)])
    with pytest.raises(ValueError, match="expected label maps to make components from, got none"):
        MaskCodec(2, (1, 1, 1), 2).fit([])
    for share in (0, 1.1):
        with pytest.raises(ValueError, match=f"a share of the variance above 0 and at most 1, got {share}"):
            fitted(4, share)


def test_weights_bring_the_number_of_components(tmp_path: Path) -> None:
    codec = fitted(5)
    save_weights(codec, tmp_path / "codec.pt", {})
    other = MaskCodec(3, BLOCK, 64)
    load_weights(other, tmp_path / "codec.pt")
    assert other.channels == 5 and torch.equal(other.components, codec.components)


def test_a_codec_is_made_once_for_its_masks_and_settings(tmp_path: Path) -> None:
    cases = []
    for seed in range(3):
        for kind in ("image", "label"):
            nib.save(nib.Nifti1Image(labels(seed), np.eye(4)), tmp_path / f"{kind}{seed}.nii")
        files = {kind: str(tmp_path / f"{kind}{seed}.nii") for kind in ("image", "label")}
        cases.append({**files, "case_id": str(seed)})
    asked: list[str] = []

    def preprocessing(case: dict) -> dict:
        asked.append(case["case_id"])
        return {"image": distances(int(case["case_id"]))}

    def made(**changed) -> MaskCodec:
        settings = {"num_classes": 3, "block": BLOCK, "channels": 4, "preprocessing_settings": {"reach": 4.0}} | changed
        return fitted_codec(tmp_path / "codec.pt", cases, preprocessing, **settings)

    first = made()
    assert asked == ["0", "1", "2"]
    assert torch.equal(made().components, first.components) and len(asked) == 3
    assert made(channels=3).channels == 3 and len(asked) == 6
    nib.save(nib.Nifti1Image(labels(9), np.eye(4)), tmp_path / "label0.nii")
    made(channels=3)
    assert len(asked) == 9
    for changed in ({"kept_variance": 0.9}, {"block": (2, 1, 1)}, {"preprocessing_settings": {"reach": 5.0}}):
        made(channels=3)
        asked.clear()
        made(channels=3, **changed)
        assert len(asked) == 3, changed


def test_of_many_masks_some_from_the_whole_list_make_the_components(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(mask_codec, "MOST_MASKS", 3)
    monkeypatch.setattr(mask_codec, "data_fingerprint", lambda _: "of seven")
    asked: list[int] = []

    def preprocessing(case: dict) -> dict:
        asked.append(case["seed"])
        return {"image": distances(case["seed"])}

    cases = [{"seed": seed} for seed in range(7)]
    found = fitted_codec(tmp_path / "codec.pt", cases, preprocessing, {}, 3, BLOCK, 18, kept_variance=0.5)
    expected = MaskCodec(3, BLOCK, 18)
    expected.fit(map(distances, (0, 2, 4)), 0.5)
    assert asked == [0, 2, 4] and torch.equal(found.components, expected.components) and found.channels < 9


def test_components_point_one_way_and_none_is_rounding_alone() -> None:
    components = fitted(18).components.flatten(1)
    assert (components.amax(1) > -components.amin(1) - 1e-6).all(), "the largest number is positive, or as large as one"
    two_classes = [torch.stack([volume[0], -volume[0]]) for volume in map(distances, range(12))]
    forth, back = MaskCodec(2, BLOCK, 12), MaskCodec(2, BLOCK, 12)
    forth.fit(two_classes)
    back.fit(two_classes[::-1])  # the same masks, other rounding
    torch.testing.assert_close(forth.components, back.components)
    few = MaskCodec(3, BLOCK, 18)
    one, two, three = torch.rand(3, 3, 2, 3, 1)
    few.fit(a * one + b * two + 1e-4 * c * three for a, b, c in ((0, 1, 0), (1, 0.5, 1), (0.3, 0, 0), (0.6, 0.2, 2)))
    assert few.channels == 2, "along the third direction blocks hardly differ"
