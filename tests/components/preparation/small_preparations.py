"""Scans of a few voxels, and how a folder of them is prepared."""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medical_diffusion_components.preparation.case import start_worker
from medical_diffusion_components.preparation.preparation import Preparation
from medical_diffusion_components.preparation.steps.load_scan import LoadScand
from medical_diffusion_components.preparation.steps.resample import Resampled
from medical_diffusion_components.preparation.steps.scale_to_range import ScaleToRanged

SIZE = (6, 5, 4)
THREADS = functools.partial(ThreadPoolExecutor, 2)
OBLIQUE = np.eye(4)  # left, posterior, superior, tilted
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() @ np.diag([-0.8, -1.4, 3.1])
OBLIQUE[:3, 3] = -20, 7, 100


class Trouble:
    """A step that misbehaves on the cases named for it."""

    def __call__(self, data):
        case = data["case_id"]
        if "crash" in case:
            os._exit(9)
        if "raise" in case:
            raise KeyError("nobody expected this")
        if "slow" in case:
            time.sleep(1.0)
        return data


class Halve:
    def __call__(self, data):
        return [{**data, "part": part} for part in ("right", "left")]


def steps(size=SIZE, *more):
    return [LoadScand("image"), Trouble(), Resampled("image", size=size), ScaleToRanged("image"), *more]


def processes():
    """As the configurations' pool, but from a server that imports what takes seconds only once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(2, mp_context=context, initializer=start_worker, initargs=(8.0,))


def write_scan(path, seed=0, shape=(12, 10, 8), affine=OBLIQUE):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def raw_folder(tmp_path, names=("a", "b", "c", "d")):
    for seed, name in enumerate(names):
        write_scan(tmp_path / "raw" / f"{name}.nii.gz", seed)
    return tmp_path / "raw"


def prepare(tmp_path, executor=THREADS, size=SIZE, max_refused_share=1.0, more=(), **options):
    folders = (tmp_path / "raw", tmp_path / "out")
    return Preparation(*folders, steps(size, *more), executor, max_refused_share=max_refused_share, **options).run()


def statuses(report):
    return {result.case_id: result.status for result in report.results}


def stamps(tmp_path):
    return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "images").iterdir()}
