"""How a region that was redrawn fits into a scan: steps across its border against the real ones.

    python benchmarks/editing.py --folder HELD_OUT --volumes 8 --output edits [--bundle bundles/adni_ldm] [--seed 0] \
        [--crop 16] [--set num_inference_steps=20]

Every volume of ``--folder`` that is used gets a ball of 6 to 9 voxels at a random place of its content, which is drawn with
the knobs of the bundle's ``edit.yaml`` and its weights. Printed for each volume and as a mean of ratios with its standard
error: mean absolute step across the border after the edit, as a share of what it was; and the mean absolute step between
neighbours within the ball, likewise. Both are 1 for a region that is as real. Outside, the greatest difference.

With ``--crop 16`` the balls are so large that a cube of this side fits in, and the cubes of the drawn regions are compared
with such cubes of other real volumes, the rest of the folder: KID in the features of EfficientNet-Lite2, beside that of as
many unconditional samples (an edit should be no worse), of the same volumes encoded and decoded, and of the same volumes
before the edit, which is 0 but for chance.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from measuring import read_knob
from monai.bundle import ConfigWorkflow

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.data.datasets import nifti_files
from medical_diffusion_components.diffusion import NoiseLatent
from medical_diffusion_components.editing import seam
from medical_diffusion_components.evaluation.spaces import SliceSpace
from medical_diffusion_components.metrics import Estimate, jackknife, kernel_matrices, mmd_squared
from medical_diffusion_components.networks import EfficientNetFeatures
from medical_diffusion_components.weights import load_weights

FEWEST = 3  # crops in a set: the jackknife leaves one out, and an unbiased KID needs pairs


def middle_of_ball(values: np.ndarray, number: int, seed: int, radius: int) -> np.ndarray:
    """A place in the brighter part of a volume, away from its faces."""
    rng = numpy_generator(seed, number)
    inner = np.argwhere(values > (values.min() + values.max()) / 2)
    return np.clip(inner[rng.integers(len(inner))], radius + 1, np.array(values.shape) - radius - 2)


def ball(shape: Sequence[int], middle: np.ndarray, radius: int) -> np.ndarray:
    """The mask of a ball."""
    return ((np.indices(shape) - middle[:, None, None, None]) ** 2).sum(0) <= radius**2


def radius_around(crop: int) -> int:
    """The least radius of a ball whose middle cube has ``crop`` voxels to a side."""
    return math.ceil(crop / 2 * math.sqrt(3))


def cube(volume: np.ndarray, middle: np.ndarray, crop: int) -> np.ndarray:
    """The voxels around a place, (crop, crop, crop)."""
    return volume[tuple(slice(start, start + crop) for start in middle - crop // 2)]


def scaled(volume: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """To [-1, 1]."""
    return np.clip((volume - limits[0]) / (limits[1] - limits[0]) * 2 - 1, -1, 1)


def own_cube(volume: np.ndarray, number: int, options: argparse.Namespace) -> np.ndarray:
    """A cube at a random bright place of its own volume, as those of the edits are."""
    return cube(volume, middle_of_ball(volume, number, options.seed, radius_around(options.crop)), options.crop)


def kid_of_crops(crops: Mapping[str, list[np.ndarray]], reference: list[np.ndarray]) -> dict[str, Estimate]:
    """KID of each set of crops to the reference, and ``edited less unconditional``, with jackknife errors.

    Args:
        crops: name -> cubes in [-1, 1], ``edited`` and ``unconditional`` among them.
        reference: such cubes of other real volumes.
    """
    space = SliceSpace(EfficientNetFeatures("lite2"))
    features = {
        name: np.stack([space(torch.from_numpy(one[None].astype(np.float32))) for one in cubes])
        for name, cubes in {**crops, "": reference}.items()
    }
    real = features.pop("")
    unit = float(np.sqrt(np.square(real).mean()))  # the kernel's, as in an evaluation, where training volumes give it
    kernels = {name: kernel_matrices(found / unit, real / unit) for name, found in features.items()}
    found = {
        name: jackknife(partial(mmd_squared, kernel), len(kernel.xx), len(real)) for name, kernel in kernels.items()
    }
    edited, unconditional = kernels["edited"], kernels["unconditional"]
    found["edited less unconditional"] = jackknife(
        lambda i, k, j: mmd_squared(edited, i, j) - mmd_squared(unconditional, k, j),
        len(edited.xx),
        len(unconditional.xx),
        len(real),
    )
    return found


def step_inside(values: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute step between neighbours that both lie in the mask."""
    steps = []
    for axis in range(3):
        both = mask.take(range(1, mask.shape[axis]), axis) & mask.take(range(mask.shape[axis] - 1), axis)
        steps.append(np.abs(np.diff(values, axis=axis))[both])
    return float(np.concatenate(steps).mean())


def mean_and_error(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="volumes that the weights have not seen")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/adni_ldm"))
    parser.add_argument("--volumes", type=int, default=8, help="that are edited, and unconditional samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="edits and masks go there")
    parser.add_argument("--crop", type=int, default=0, help="side of the cubes whose KID is measured; 0: none")
    parser.add_argument("--set", nargs="+", type=read_knob, default=[], metavar="ID=VALUE", help="knobs of edit.yaml")
    return parser.parse_args()


class Editing:
    """The bundle's ``edit.yaml`` with its weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        folders = {"bundle_root": str(options.bundle.resolve()), "output_dir": str(options.output.resolve())}
        config = str(options.bundle / "configs" / "edit.yaml")
        run = ConfigWorkflow([config], workflow_type="train", **folders, **dict(options.set))
        run.initialize()
        self.get = run.parser.get_parsed_content
        load_weights(self.get("network_def"), self.get("weights"), self.get("knobs"))
        self.edit = self.get("edit")

    def read(self, file: Path) -> nib.Nifti1Image:
        """A volume on the model's grid, voxel by voxel."""
        image = nib.load(file)
        size, codes = tuple(self.get("image_size")), "".join(nib.aff2axcodes(image.affine))
        if image.shape != size or codes != self.get("axcodes"):
            raise SystemExit(f"{file}: expected {size} voxels along {self.get('axcodes')}, got {image.shape}, {codes}")
        return image

    @torch.no_grad()
    def decoded(self, volume: np.ndarray) -> np.ndarray:
        """A volume in [-1, 1] through the first stage."""
        stage = self.get("network_def").first_stage.eval()
        tensor = torch.from_numpy(volume.astype(np.float32))[None, None]
        return stage.decode_stage_2_outputs(stage.encode_stage_2_inputs(tensor))[0, 0].numpy().clip(-1, 1)

    @torch.no_grad()
    def sample(self, seed: int) -> np.ndarray:
        """An unconditional sample in [-1, 1]."""
        noise = NoiseLatent(self.get("latent_shape"))(seed)
        return self.get("network_def").eval()(noise[None])[0, 0].numpy().clip(-1, 1)


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    editing, across, inside = Editing(options), [], []
    crops: dict[str, list[np.ndarray]] = {"before": [], "decoded": [], "edited": [], "unconditional": []}
    options.output.mkdir(parents=True, exist_ok=True)
    files = nifti_files(options.folder)
    if (label := next((file for file in files if "labels" in file.parts), None)) is not None:
        raise SystemExit(
            f"{options.folder}: expected scans alone, got label maps such as {label}; give the folder images"
        )
    if options.crop and min(options.volumes, len(files) - options.volumes) < FEWEST:
        raise SystemExit(
            f"{options.folder}: expected at least {FEWEST} volumes to edit and {FEWEST} others to compare with, got "
            f"{len(files)} files with --volumes {options.volumes}"
        )
    for number, file in enumerate(files[: options.volumes]):
        image = editing.read(file)
        before = np.asarray(image.get_fdata())
        radius = radius_around(options.crop) if options.crop else 6 + number % 4
        middle = middle_of_ball(before, number, options.seed, radius)
        mask = ball(before.shape, middle, radius)
        place = options.output / f"mask_{number}.nii.gz"
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), place)
        started = time.process_time()
        (after,) = editing.edit.inpaint(file, place, [options.seed])
        seconds = time.process_time() - started
        across.append(seam(after, mask).across / seam(before, mask).across)
        inside.append(step_inside(after, mask) / step_inside(before, mask))
        outside = float(np.abs(after - before)[~mask].max())
        print(
            f"{file.name}: border {across[-1]:.3f}, inside {inside[-1]:.3f}, outside {outside:g}, {seconds:.0f} s",
            flush=True,
        )
        if options.crop:
            limits = float(before.min()), float(before.max())
            real = scaled(before, limits)
            shown = {"before": real, "decoded": editing.decoded(real), "edited": scaled(after, limits)}
            for name, volume in shown.items():
                crops[name].append(cube(volume, middle, options.crop))
            crops["unconditional"].append(own_cube(editing.sample(options.seed + number), number, options))
    if len(across) > 1:
        print(f"steps as a share of real: border {mean_and_error(across)}, inside {mean_and_error(inside)}")
    if options.crop:
        reference = []
        for number, file in enumerate(files[options.volumes :], start=options.volumes):
            values = np.asarray(editing.read(file).get_fdata())
            volume = scaled(values, (float(values.min()), float(values.max())))
            reference.append(own_cube(volume, number, options))
        print(f"KID of cubes of {options.crop} voxels to those of {len(reference)} other real volumes:")
        for name, found in kid_of_crops(crops, reference).items():
            print(f"  {name:27}{found.value:.3f} ± {found.error:.3f}")


if __name__ == "__main__":
    main()
