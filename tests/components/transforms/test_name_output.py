from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from medical_diffusion_components.transforms import NameOutputd, output_name


def save(folder: Path, **entry: str) -> None:
    volume = MetaTensor(torch.rand(1, 3, 4, 5), affine=torch.eye(4), meta={"filename_or_obj": "/data/sub-01/T1.nii.gz"})
    named = NameOutputd("image")({"image": volume, **entry})["image"]
    SaveImage(
        folder, "seg", output_name_formatter=output_name, separate_folder=False, output_dtype=np.uint8, print_log=False
    )(named)


def test_outputs_are_named_by_the_case_dots_slashes_and_all(tmp_path: Path) -> None:
    for case_id in ("sub-01_T1", "sub-02_T1", "scan.1", "scan.2", "a/b"):
        save(tmp_path, case_id=case_id)
    save(tmp_path)  # a server's, without an id
    names = {path.name.removesuffix("_seg.nii.gz") for path in tmp_path.iterdir()}
    assert names == {"sub-01_T1", "sub-02_T1", "scan.1", "scan.2", "a_b", "T1"}
