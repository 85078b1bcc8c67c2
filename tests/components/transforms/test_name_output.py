from __future__ import annotations

import errno
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from medical_diffusion_components.transforms import NameOutputd, WholeFileWriter, output_name
from medical_diffusion_components.workflow import stages


def save(folder: Path, **entry: str) -> None:
    volume = MetaTensor(torch.rand(1, 3, 4, 5), affine=torch.eye(4), meta={"filename_or_obj": "/data/sub-01/T1.nii.gz"})
    named = NameOutputd("image")({"image": volume, **entry})["image"]
    SaveImage(
        folder,
        "seg",
        output_name_formatter=output_name,
        separate_folder=False,
        output_dtype=np.uint8,
        print_log=False,
        writer=WholeFileWriter,
    )(named)


def test_a_full_disk_leaves_the_earlier_output_and_is_the_last_line_of_the_message(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, case_id="head")
    (file,) = tmp_path.iterdir()
    before = file.read_bytes()

    def full(image: nib.Nifti1Image, path: str) -> None:
        Path(path).write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(RuntimeError) as failed:
        save(tmp_path, case_id="head")
    last = str(failed.value).strip().splitlines()[-1]
    assert last.startswith(f"OSError: cannot write {file}") and "No space left on device" in last
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    kind, error = RuntimeError, failed.value
    ended: list[str] = []
    monkeypatch.setattr(stages, "end_by_error", ended.append)
    stages._traceback_with_cause(kind, error, None)
    assert ended == [f"RuntimeError: {last}"]


def test_outputs_are_named_by_the_case_dots_slashes_and_all(tmp_path: Path) -> None:
    for case_id in ("sub-01_T1", "sub-02_T1", "scan.1", "scan.2", "a/b"):
        save(tmp_path, case_id=case_id)
    save(tmp_path)  # a server's, without an id
    names = {path.name.removesuffix("_seg.nii.gz") for path in tmp_path.iterdir()}
    assert names == {"sub-01_T1", "sub-02_T1", "scan.1", "scan.2", "a_b", "T1"}
