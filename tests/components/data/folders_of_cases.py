"""Folders of small volumes, with and without a datalist."""

import json

import nibabel as nib
import numpy as np


def write_nifti(path, seed=0, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.random.default_rng(seed).random((4, 5, 6), dtype=np.float32)
    nib.save(nib.Nifti1Image(volume, np.eye(4) if affine is None else affine), path)
    return str(path)


def rewrite(folder, **content):
    path = folder / "dataset.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **content}))
