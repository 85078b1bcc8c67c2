"""One scan in two files: the same bytes, or a copy that was mirrored, turned, cut, rescaled or written in another format.

A copy has other bytes, another size and other intensities, but around a bright voxel it has the same neighbours. Each scan
is described by its brightest such places: how the 26 neighbours of a voxel that is brighter than all of them fall below it,
in order of their intensities, as shares of the steepest. That is the same after any of these changes. It is not after
interpolation, so a copy that was resampled is not found.
"""

from __future__ import annotations

import base64
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from monai.data import MetaTensor
from scipy import ndimage
from scipy.spatial import KDTree
from tqdm import tqdm

from medical_diffusion_components.files import file_hash
from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["in_two_splits", "landmarks", "same_scans", "scans_among", "to_text"]

_BEGINNING = 1 << 12  # bytes of a file
_MIDDLE = 40  # voxels to each side of the centre: some 0.1 s of a processor
_PLACES = 64  # of a scan, those of the highest contrast
_FEWEST = 12  # places in common that make two scans one
_SHARE = 0.25  # of the places of the scan that has fewer
_LEVELS = 255  # of a share
_SAME = 4  # levels: rounding of intensities to whole numbers stays below
_DISTINCT = 0.02  # of the steepest fall: what separates a voxel from its brightest neighbour
_COMMON = 3  # other scans that may have a place in common: more have it by a template or a stamp
_CONTRAST = 0.02  # of the range of intensities: less is rounding


def landmarks(voxels: np.ndarray, middle: int = _MIDDLE) -> np.ndarray:
    """The places by which a scan is known again, (N, 25) bytes; N is at most 64, and few or none in smooth pictures.

    Args:
        voxels: (H, W, D), as they are in the file.
        middle: how many voxels to each side of the centre are looked at. Copies that were cut have to overlap there.
    """
    part = tuple(slice(max(0, n // 2 - middle), n // 2 + middle) for n in voxels.shape)
    volume = np.nan_to_num(voxels[part]).astype(np.float32)
    inner = (slice(1, -1),) * 3
    lowest = ndimage.minimum_filter(volume, 3)[inner]
    peaks = (volume == ndimage.maximum_filter(volume, 3))[inner] & (
        volume[inner] - lowest > _CONTRAST * float(np.ptp(volume))
    )
    places = np.argwhere(peaks)
    contrast = (volume[inner] - lowest)[peaks]
    places = places[np.argsort(-contrast, kind="stable")[: 4 * _PLACES]] + 1
    steps = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    around = volume[tuple((places[:, None] + steps).transpose(2, 0, 1))].astype(np.float64)  # (N, 27)
    falls = np.sort(around.max(1, keepdims=True, initial=-np.inf) - around, axis=1)  # 0 first, the steepest last
    shares = falls[:, 1:-1] / falls[:, -1:]
    return np.round(shares[shares[:, 0] > _DISTINCT][:_PLACES] * _LEVELS).astype(np.uint8)


def to_text(places: np.ndarray) -> str:
    """Landmarks as a text that JSON can hold."""
    return base64.b64encode(places.tobytes()).decode()


def same_scans(places: Mapping[str, np.ndarray | str]) -> list[tuple[str, str]]:
    """Pairs of scans that are one, by their landmarks.

    Args:
        places: name -> landmarks, also as text.
    """
    names = sorted(places)
    arrays = [_array(places[name]) for name in names]
    owners = np.repeat(np.arange(len(names)), [len(array) for array in arrays])
    if not len(owners):
        return []
    tree = KDTree(np.concatenate(arrays).astype(np.float64))
    close = tree.query_pairs(_SAME, p=np.inf, output_type="ndarray")
    close = close[owners[close[:, 0]] != owners[close[:, 1]]]
    seen_in = Counter(
        np.unique(np.column_stack([close.ravel(), owners[close[:, ::-1].ravel()]]), axis=0)[:, 0].tolist()
    )
    shared: dict[tuple[int, int], tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
    for one, other in close.tolist():
        if max(seen_in[one], seen_in[other]) <= _COMMON:
            for found, place in zip(shared[owners[one], owners[other]], (one, other)):
                found.add(place)
    needed = {pair: max(_FEWEST, _SHARE * min(len(arrays[number]) for number in pair)) for pair in shared}
    same = sorted(pair for pair, found in shared.items() if min(map(len, found)) >= needed[pair])
    return [(names[one], names[other]) for one, other in same]


def in_two_splits(
    cases: Mapping[str, Sequence[Mapping[str, Any]]], look: Callable[[str, MetaTensor], object] | None = None
) -> list[tuple[str, str]]:
    """Pairs of cases of two splits that are one scan: files of the same bytes, or copies as this module describes them.

    A file that cannot be read is compared by its bytes alone; whatever loads it says so.

    Args:
        cases: split -> its cases.
        look: called with the id of each case and its volume (1, H, W, D), as long as that is in memory.
    """
    split_of = {case["case_id"]: split for split, listed in cases.items() for case in listed}
    every = {case["case_id"]: str(case["image"]) for listed in cases.values() for case in listed}
    pairs = {tuple(sorted(pair)) for pair in _same_bytes(every)}
    places = {}
    for case_id, file in tqdm(every.items(), desc="comparing the scans of the splits", unit="scan", leave=False):
        volume = _read(file)
        if volume is not None:
            places[case_id] = landmarks(volume.numpy()[0])
        if look is not None and volume is not None:
            look(case_id, volume)
    pairs |= set(same_scans(places))
    return sorted((one, other) for one, other in pairs if split_of[one] != split_of[other])


def scans_among(cases: Sequence[Mapping[str, Any]], real: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of those cases that are real scans: the same file, or a copy as this module describes it.

    No generator draws a scan to the last digit, so such a volume is none that was drawn.

    Args:
        cases, real: with ``image`` and, of ``cases``, ``case_id``.
    """
    files = {file_hash(case["image"]) for case in real}
    places: dict[str, np.ndarray] = {}
    for kind, every in (("case", cases), ("real", real)):
        for number, case in enumerate(every):
            volume = _read(str(case["image"]))
            if volume is not None:
                places[f"{kind} {number}"] = landmarks(volume.numpy()[0])
    crossing = [pair for pair in same_scans(places) if pair[0].split()[0] != pair[1].split()[0]]
    copies = {name for pair in crossing for name in pair}
    return [
        case["case_id"]
        for number, case in enumerate(cases)
        if f"case {number}" in copies or file_hash(case["image"]) in files
    ]


def _read(file: str) -> MetaTensor | None:
    """A volume (1, H, W, D), or None: whatever loads it for its own purposes says why not."""
    try:
        return LoadVolume()(file)
    except VolumeError:
        return None


def _same_bytes(files: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs of cases whose files are the same. Only files of one size and one beginning are read whole."""
    groups: dict[tuple[int, bytes], list[str]] = defaultdict(list)
    for case_id, path in files.items():
        with open(path, "rb") as file:
            groups[os.path.getsize(path), file.read(_BEGINNING)].append(case_id)
    by_hash: dict[str, list[str]] = defaultdict(list)
    for group in groups.values():
        for case_id in group if len(group) > 1 else []:
            by_hash[file_hash(files[case_id])].append(case_id)
    return [pair for same in by_hash.values() for pair in combinations(same, 2)]


def _array(places: np.ndarray | str) -> np.ndarray:
    found = np.frombuffer(base64.b64decode(places), np.uint8) if isinstance(places, str) else places
    return found.reshape(-1, 25)
