"""How a region that was redrawn fits into a scan: steps across its border against the real ones.

    python benchmarks/editing.py --folder HELD_OUT --volumes 8 [--bundle bundles/adni_ldm] [--seed 0] [--output edits]

Every volume of ``--folder`` that is used gets a ball of 6 to 9 voxels at a random place of its content, which is drawn with
the knobs of the bundle's ``edit.yaml`` and its weights. Printed for each volume and as a mean of ratios with its standard
error: mean absolute step across the border after the edit, as a share of what it was; and the mean absolute step between
neighbours within the ball, likewise. Both are 1 for a region that is as real. Outside, the greatest difference.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.data.datasets import nifti_files
from medical_diffusion_components.editing import seam
from medical_diffusion_components.weights import load_weights


def ball(values: np.ndarray, number: int, seed: int) -> np.ndarray:
    """A mask whose middle lies in the brighter part of a volume, away from its faces."""
    rng, radius = numpy_generator(seed, number), 6 + number % 4
    inner = np.argwhere(values > (values.min() + values.max()) / 2)
    middle = np.clip(inner[rng.integers(len(inner))], radius + 1, np.array(values.shape) - radius - 2)
    return ((np.indices(values.shape) - middle[:, None, None, None]) ** 2).sum(0) <= radius**2


def step_inside(values: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute step between neighbours that both lie in the mask."""
    steps = []
    for axis in range(3):
        both = mask.take(range(1, mask.shape[axis]), axis) & mask.take(range(mask.shape[axis] - 1), axis)
        steps.append(np.abs(np.diff(values, axis=axis))[both])
    return float(np.concatenate(steps).mean())


def mean_and_error(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="volumes that the weights have not seen")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/adni_ldm"))
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="edits and masks go there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = str(arguments.bundle / "configs" / "edit.yaml")
    root, output = str(arguments.bundle.resolve()), str(arguments.output.resolve())
    run = ConfigWorkflow([config], workflow_type="train", bundle_root=root, output_dir=output)
    run.initialize()
    get = run.parser.get_parsed_content
    load_weights(get("network_def"), get("weights"), get("knobs"))
    edit, across, inside = get("edit"), [], []
    arguments.output.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(nifti_files(arguments.folder)[: arguments.volumes]):
        image = nib.load(file)
        before = np.asarray(image.get_fdata())
        mask = ball(before, number, arguments.seed)
        place = arguments.output / f"mask_{number}.nii.gz"
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), place)
        started = time.process_time()
        (after,) = edit.inpaint(file, place, [arguments.seed])
        seconds = time.process_time() - started
        across.append(seam(after, mask).across / seam(before, mask).across)
        inside.append(step_inside(after, mask) / step_inside(before, mask))
        outside = float(np.abs(after - before)[~mask].max())
        print(
            f"{file.name}: border {across[-1]:.3f}, inside {inside[-1]:.3f}, outside {outside:g}, {seconds:.0f} s",
            flush=True,
        )
    if len(across) > 1:
        print(f"steps as a share of real: border {mean_and_error(across)}, inside {mean_and_error(inside)}")


if __name__ == "__main__":
    main()
