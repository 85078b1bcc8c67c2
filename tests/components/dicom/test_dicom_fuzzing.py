"""Malformed folders: the right volume or a refusal, never a wrong volume, a crash or a hang.

Out of reach, because nothing in the files tells: bits changed inside the pixels, and one lie told alike in all slices
(another pixel spacing or sign throughout). Neither is made here.
"""

import time
import warnings

import numpy as np
import pytest
from dicom_fuzzing import DAMAGES, malformed_copy
from dicom_writing import write_series
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medical_diffusion_components.dicom.series import SeriesRefused, read_series

KINDS = [
    ("CT", ExplicitVRLittleEndian),
    ("MR", ExplicitVRBigEndian),
    ("CT", ImplicitVRLittleEndian),
    ("CT", RLELossless),
]
CORNERS = np.array([[i, j, k, 1] for i in (0, 5) for j in (0, 4) for k in (0, 6)]).T
CASES = 240


@pytest.fixture(scope="module")
def sources(tmp_path_factory, make_affine):
    rng = np.random.default_rng(5)
    made = []
    for number, (modality, syntax) in enumerate(KINDS):
        volume = rng.integers(-1024, 2000, (6, 5, 7)).astype(np.float32)
        affine = np.diag([-0.7, -0.9, 2.5, 1]) if number == 0 else make_affine(rng)
        echo_time = 3.5 if modality == "MR" else None
        folder = tmp_path_factory.mktemp("source") / "series"
        write_series(folder, volume, affine, modality=modality, transfer_syntax=syntax, echo_time=echo_time)
        made.append((folder, volume, affine))
    return made


@pytest.mark.parametrize("seed", range(4))
def test_malformed_folders_are_read_right_or_refused(sources, tmp_path, seed):
    rng = np.random.default_rng([2024, seed])
    outcomes = {"read": 0, "refused": 0}
    for number in range(CASES // 4):
        folder, volume, affine = sources[number % len(sources)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, when the fuzzer writes wrong values
            what = malformed_copy(folder, tmp_path / str(number), rng)
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read = read_series(tmp_path / str(number))
        except SeriesRefused:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert read.array.shape == volume.shape and (read.array == volume).all(), what
            assert np.abs((read.affine - affine) @ CORNERS).max() < 0.05, what  # mm: 2 % of the slice spacing
        assert time.perf_counter() - start < 5, what
    assert outcomes["read"] >= 4 and outcomes["refused"] >= 30


@pytest.mark.parametrize("damage", sorted({damage.__name__ for damage in DAMAGES}))
def test_every_kind_of_damage_changes_the_folder(sources, tmp_path, damage, monkeypatch):
    function = next(function for function in DAMAGES if function.__name__ == damage)
    monkeypatch.setattr("dicom_fuzzing.DAMAGES", [function])
    source = sources[0][0]
    malformed_copy(source, tmp_path / "copy", np.random.default_rng(0))
    before, after = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (source, tmp_path / "copy")
    )
    assert before != after
