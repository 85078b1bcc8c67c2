"""The bundles of this repository, read and run in this process; every test of this folder finds them through here."""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from scipy.ndimage import gaussian_filter

from medical_diffusion_components.cohorts import embedded

_PARSE = ConfigParser.load_config_file


def _parsed_once(filepath: str | Path, **options: Any) -> dict[str, Any]:
    """MONAI takes 30 ms for a configuration, and a run reads a dozen of them, mostly those of the run before."""
    if options or not filepath:
        return _PARSE(filepath, **options)
    return copy.deepcopy(_content(str(filepath), Path(filepath).read_bytes()))


@functools.cache
def _content(file: str, content: bytes) -> dict[str, Any]:
    return _PARSE(file)


ConfigParser.load_config_file = staticmethod(_parsed_once)  # also where MONAI itself reads one
REPOSITORY = Path(__file__).parents[2]
BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if (path / "configs").is_dir())

# Values that make any bundle small; those that a bundle has no knob for are left out. Sides are all different, 12 is
# about the least that SSIM's window of 11 allows.
TINY = {
    "image_size": [16, 32, 12],
    "patch_size": [16, 32, 12],
    "base_channels": 4,
    "compression": [2, 2, 2],
    "norm_groups": 4,
    "num_codes": 32,
    "discriminator_channels": 4,
    "autoencoder_batch_size": 2,
    "autoencoder_epochs": 1,
    "adversarial_start": 2,
    "adversarial_warmup": 1,
    "adversarial_ramp": 1,
    "denoiser_channels": 8,
    "num_train_timesteps": 12,
    "batch_size": 2,
    "control_batch_size": 2,
    "mask_batch_size": 2,
    "mask_denoiser_channels": 8,
    "mask_channels": 4,
    "num_masks": 3,
    "epochs": 1,
    "accumulation_steps": 2,
    "ema_every": 1,
    "ema_start": 2,
    "sampler": "ddim",
    "num_inference_steps": 2,
    "num_embedded_subjects": 6,
    "embedded_image_size": [64, 36, 32],
    "roi_size": [64, 32, 32],
    "feature_size": 12,
    "depths": [1, 1, 1, 1],
    "window_size": 2,
    "iterations_per_epoch": 2,
    "warmup_iterations": 1,
    "overlap": 0.1,
    "num_volumes": 3,
    "num_shown": 2,
    "num_more_held_out": 6,
    "num_calibration_subjects": 20,
    "encoder_steps": 30,
    "val_interval": 1,
    "code_size": 5,
    "gan_channels": 8,
    "code_hidden": 16,
}
# alpha-WGAN halves every side four times
TINY_GAN = {"image_size": [16, 48, 32]}


class Trained(NamedTuple):
    """A bundle after training, inference and evaluation of a tiny model, by default on its embedded cohort."""

    bundle: Path
    folder: Path  # of this bundle's outputs
    overrides: dict  # those that all its runs had
    printed: dict[str, str]  # configuration -> what its run printed

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def output(self) -> Path:
        return self.folder / "output"


def bundles_with(*configs: str) -> list[Path]:
    """The bundles that have all these configuration files."""
    return [path for path in BUNDLES if all((path / "configs" / config).is_file() for config in configs)]


def for_bundles_with(*configs: str, at_most: int | None = None) -> pytest.MarkDecorator:
    """Run a test once per bundle that has these configuration files, as its argument ``bundle``.

    Where a test is slow and looks at what test_shared_blocks.py holds all bundles to, ``at_most`` one of them is enough.
    """
    found = bundles_with(*configs)[:at_most]
    return pytest.mark.parametrize("bundle", found, ids=[path.name for path in found])


def for_each_kind_with(*configs: str) -> pytest.MarkDecorator:
    """As :func:`for_bundles_with`, without the bundles that differ from a sibling only in their data and sizes.

    test_siblings.py holds siblings to each other byte for byte but for the values in bundles/README.md. Where a test sets
    the sizes itself, a run of duke_ldm or lidc_ldm is that of adni_ldm on other phantoms; mrnet_ldm has other axes.
    """
    found = [path for path in bundles_with(*configs) if path.name not in ("duke_ldm", "lidc_ldm")]
    return pytest.mark.parametrize("bundle", found, ids=[path.name for path in found])


def config_files(bundle: Path) -> list[Path]:
    """Every configuration of a bundle; its metadata are none."""
    files = [*bundle.glob("configs/*.yaml"), *bundle.glob("configs/*.yml"), *bundle.glob("configs/*.json")]
    return sorted(file for file in files if file.stem != "metadata")


def is_overlay(file: Path) -> bool:
    """Whether a configuration only makes sense on top of another."""
    return "run" not in read(file)


def read(file: Path) -> dict[str, Any]:
    """A configuration as it stands in its file."""
    return ConfigParser.load_config_file(file)


def by_default(value: Any) -> Any:
    """What a knob that the weights' note decides is before there are weights."""
    found = (
        re.fullmatch(r"\$trained_knob\(@(?:control_)?weights, '\w+', (.*)\)", value) if isinstance(value, str) else None
    )
    if found is None:
        return value
    return f"${found[1]}" if "@" in found[1] else ast.literal_eval(found[1])


def tiny(bundle: Path, **overrides: Any) -> dict[str, Any]:
    """The small values that this bundle has knobs for, and ``overrides``."""
    known = {id for file in config_files(bundle) for id in read(file)}
    small = TINY | TINY_GAN if "code_size" in known else TINY
    return {id: value for id, value in small.items() if id in known} | overrides


def used(bundle: Path, configs: Sequence[str], overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides without the small values that these configurations and what they pass them on to do not have."""
    passed_on = {"train.yaml": ["train_autoencoder.yaml"], "label_study.yaml": ["train.yaml", "evaluate.yaml"]}
    names = [*configs, *passed_on.get(configs[0], [])]
    known = {id for name in names if (bundle / "configs" / name).is_file() for id in read(bundle / "configs" / name)}
    return {id: value for id, value in overrides.items() if id in known or id not in TINY}


def workflow(bundle: Path, config: str | Sequence[str], **overrides: Any) -> ConfigWorkflow:
    """What ``python -m monai.bundle run --config_file ...`` makes of its command line, before it runs anything.

    Of the values that make bundles small, those that the configuration does not use are left out.
    """
    names = [config] if isinstance(config, str) else config
    files = [os.path.relpath(bundle / "configs" / name) for name in names]
    overrides = used(bundle, names, overrides)
    return ConfigWorkflow(files, workflow_type="infer" if names[0] == "inference.json" else "train", **overrides)


def run(bundle: Path, config: str | Sequence[str], **overrides: Any) -> str:
    """Run a configuration as the command line does, and return what it printed."""
    with undisturbed() as printed:
        started = workflow(bundle, config, **overrides)
        started.initialize()
        started.run()
        started.finalize()
    return printed.getvalue()


def last_line(bundle: Path, config: str | Sequence[str], **overrides: Any) -> str:
    """Run a configuration that must fail, and return the last line that a person would see in the terminal."""
    errors = io.StringIO()
    with undisturbed(), contextlib.redirect_stderr(errors):
        try:
            started = workflow(bundle, config, **overrides)
            started.initialize()
            started.run()
        except Exception:
            sys.excepthook(*sys.exc_info())
        else:
            pytest.fail("this should have been an error")
    return errors.getvalue().strip().splitlines()[-1]


@contextlib.contextmanager
def undisturbed() -> Iterator[io.StringIO]:
    """Catch what is printed; put back what a workflow changes in its process, such as what it has said."""
    embedded._announce.cache_clear()
    root, hook, path, threads = logging.getLogger(), sys.excepthook, sys.path[:], torch.get_num_threads()
    handlers, level = root.handlers[:], root.level
    torch.set_num_threads(1)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield printed
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.excepthook, sys.path[:] = hook, path
        torch.set_num_threads(threads)


def tree(folder: Path) -> dict[str, bytes]:
    """Path below ``folder`` -> content, of every file."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Two nested states, such as checkpoints, are equal to the bit."""
    assert type(one) is type(other), place
    if torch.is_tensor(one):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, parts in enumerate(zip(one, other)):
            assert_same(*parts, f"{place}[{number}]")
    else:
        assert one == other, place


def write_volume(path: Path, number: int) -> None:
    """A smooth random volume of 16 x 32 x 12 voxels; every third one has thicker slices."""
    rng = np.random.default_rng(number)
    volume = gaussian_filter(rng.normal(size=(16, 32, 12)), 2).astype(np.float32) * 1000
    affine = np.diag([-1.5, 0.75, 4.0 if number % 3 == 0 else 2.5, 1.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)
