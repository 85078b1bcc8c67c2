"""A new bundle for your own data from an existing one: other sizes, the same networks and training.

    python -m medical_diffusion_components.new_bundle --source bundles/adni_ldm --target bundles/my_ldm \\
        --name "Liver CT latent diffusion" --image_size 96 96 48 --compression 4 4 4

The files are changed as text, so that their comments stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from medical_diffusion_components.files import write_json
from medical_diffusion_components.networks.vqgan import check_divisible
from medical_diffusion_components.orientation import world_axes
from medical_diffusion_components.preflight.training_memory import training_memory
from medical_diffusion_components.transforms.volume_error import times

__all__ = ["main", "new_bundle"]

FILL_IN = "FILL IN"
FINEST, COARSEST = 0.01, 100.0  # mm of a voxel, from histology to far beyond any scanner
SMALLEST_SIDE = 12  # voxels: the window of SSIM, which validation computes, is 11 wide
TRAINED_KNOB = "$trained_knob(@weights, "  # so begin the knobs that the weights' note decides
# What makes no sense at another size or without the source's data is not taken along: demo.yaml, low_compression.yaml.
COPIED = (
    "prepare.yaml",
    "train_autoencoder.yaml",
    "train.yaml",
    "multi_gpu_train.yaml",
    "inference.json",
    "evaluate.yaml",
    "audit.yaml",
    "edit.yaml",
    "train_control.yaml",
    "train_masks.yaml",
    "masks.yaml",
    "evaluate_masks.yaml",
    "pairs.yaml",
    "evaluate_pairs.yaml",
    "release_dataset.yaml",
    "logging.conf",
)
NEEDED = (*COPIED, "metadata.json")
_DIRECTIONS = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
# First lines; the sibling bundles of this repository have the same, with their name and what they synthesise.
_HEADERS = {
    "prepare.yaml": "Turns NIfTI or DICOM of your own into the volumes and the datalist that train.yaml reads.",
    "train_autoencoder.yaml": "First stage of {bundle}: trains a 3D VQ-GAN that compresses {subject} to discrete latents. "
    "Normally started by train.yaml.",
    "train.yaml": "Second stage of {bundle}: trains the latent diffusion model; the first stage is trained before it if "
    "its weights are missing.",
    "evaluate.yaml": "Evaluation of {bundle}: synthetic volumes against held-out ones, with floors and errors; "
    "reconstruction by the first stage.",
    "edit.yaml": "Editing of real scans by {bundle}: a region redrawn, variations of a scan, volumes between two scans.",
    "train_control.yaml": "Control of {bundle} by masks: trains a branch that makes the finished, frozen generator draw a "
    "given label map.",
    "train_masks.yaml": "Masks of {bundle}: trains a small diffusion model that synthesises label maps; pairs.yaml draws "
    "volumes from them.",
    "masks.yaml": "Masks from {bundle}: synthesises label maps, from which pairs.yaml draws volumes.",
    "evaluate_masks.yaml": "Comparison of masks from {bundle} with the training's: copies, volumes, variety.",
    "pairs.yaml": "Pairs from masks by {bundle}: synthetic volumes drawn from label maps, listed for the training of a "
    "segmentation.",
    "evaluate_pairs.yaml": "Obedience of {bundle} to masks: whether a segmentation finds in synthetic volumes what their "
    "masks asked for.",
    "audit.yaml": "Copy audit of {bundle}: which synthetic volumes are copies of training volumes, and do the weights know "
    "their training set.",
    "release_dataset.yaml": "Data set to release from {bundle}: volumes that passed the audit, with what others need to "
    "load and to judge them.",
}
_COMMENT_COLUMN = 43  # of most knobs; a line that has its comment further to the left keeps it there
_README = """# {name}

{fill_in}: what is synthesised, from which data.

A 3D VQ-GAN compresses volumes of {size} voxels to latents of {latent}, and a diffusion model learns the distribution of the
latents. Made from `{source}`; what differs are the sizes, and that this bundle has no embedded cohort: it needs your data.

1. Bring the volumes to one size. The steps in `prepare.yaml` are those of `{source}`: read them, and change what does not
   suit your data. A folder of NIfTI files that already have {size} voxels needs no preparation.

       python -m monai.bundle run prepare --config_file bundles/{folder}/configs/prepare.yaml \\
           --raw_dir scans --dataset_dir prepared

2. Train both stages. Repeat the command after an interruption and it resumes where it stopped:

       python -m monai.bundle run training --config_file bundles/{folder}/configs/train.yaml --dataset_dir prepared

3. Sample, and evaluate on the test split:

       python -m monai.bundle run --config_file bundles/{folder}/configs/inference.json --num_volumes 100 --seed 7
       python -m monai.bundle run --config_file bundles/{folder}/configs/evaluate.yaml --dataset_dir prepared

Batch sizes and numbers of epochs are those of `{source}`; larger volumes need smaller batches (`autoencoder_batch_size`,
`batch_size`). Synthetic volumes are for research, not for diagnosis.
"""
_LICENCE = """{fill_in}: whose the images are, under which licence or agreement, and what that means for weights.
No image is part of this bundle. Weights can reproduce images that they were trained on: ask the owner before you pass
any on.
"""


def new_bundle(
    source: str | os.PathLike,
    target: str | os.PathLike,
    name: str,
    image_size: Sequence[int],
    compression: Sequence[int],
    spacing: Sequence[float] | None = None,
    axcodes: str | None = None,
    subject: str = "volumes",
    knobs: Mapping[str, tuple[str, str]] | None = None,
) -> Path:
    """Write a bundle at ``target`` that differs from ``source`` in its sizes and has no data of its own.

    The bundles of this repository come from each other in this way, but for ``prepare.yaml``, which is written for each
    data set, and the overlay for laptops.

    Args:
        source: folder of a latent diffusion bundle.
        target: folder to make; its name is the bundle's.
        name: title for people.
        image_size: voxels (H, W, D).
        compression: voxels per latent position (H, W, D), powers of two.
        spacing: mm along H, W, D to which ``prepare.yaml`` resamples; None keeps the source's.
        axcodes: where H, W and D point, such as ``"RAS"``; None keeps the source's.
        subject: what is synthesised, for the first lines of the configurations, such as ``"knee MRI"``.
        knobs: further ids of the configurations -> value as YAML and comment at the line's end, such as ``"batch_size":
            ("40", "per device (paper)")``. They go before what the other arguments make of the same id.

    Returns:
        ``target``.

    Raises:
        FileNotFoundError: the source is no such bundle, or the folder above the target does not exist.
        FileExistsError: there is something at ``target``.
        ValueError: a folder name that MONAI cannot use, sizes that do not fit, or a knob that no configuration of the
            source has; nothing is written.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    missing = [file for file in NEEDED if not (source / "configs" / file).is_file()]
    if missing:
        raise FileNotFoundError(f"{source} is no latent diffusion bundle: it lacks configs/{missing[0]}")
    if not name.strip():
        raise ValueError("name must say what the bundle is for, got an empty text")
    for what, text in {"name": name, "subject": subject}.items():
        if len(text.splitlines()) != 1:  # a second line would be one of the configuration
            raise ValueError(f"{what} must be a text of one line, got {text!r}")
    _check_folder(source, target)
    values = _knobs(source, image_size, compression, spacing, axcodes)
    lines = _lines(source, values, knobs or {})
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        unfinished.chmod(0o755)  # mkdtemp keeps others out
        _write_configs(source, unfinished, target.name, subject, values, lines)
        _write_documents(source, unfinished, target.name, name, values)
        if target.exists():
            raise FileExistsError(f"{target} was made in the meantime")
        os.replace(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _check_folder(source: Path, target: Path) -> None:
    """MONAI and the Model Zoo take names apart: see the tests of the bundles."""
    if target.exists():
        raise FileExistsError(f"{target} exists: choose another folder, nothing is written into an existing one")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}, the folder to make {target.name} in, does not exist")
    if source in target.parents:
        raise ValueError(f"{target} lies inside the source {source}: choose a folder beside it")
    if not re.fullmatch(r"[A-Za-z]\w*", target.name, flags=re.ASCII):
        raise ValueError(f"a bundle's folder is named with letters, digits and _, got {target.name!r}")
    if "_v" in target.name:
        raise ValueError(
            f"{target.name!r} holds '_v', which MONAI takes for the beginning of a version: choose another"
        )
    siblings = {path.parents[1].name for path in target.parent.glob("*/configs/metadata.json")} | {source.name}
    for other in sorted(siblings):
        if other in target.name or target.name in other:
            raise ValueError(
                f"one of {target.name!r} and the bundle {other!r} is part of the other: choose another name"
            )


def _knobs(
    source: Path,
    image_size: Sequence[int],
    compression: Sequence[int],
    spacing: Sequence[float] | None,
    axcodes: str | None,
) -> dict[str, Any]:
    """The checked values by the ids that they have in the configurations, and ``latent_shape``."""
    config = ConfigParser.load_config_file(source / "configs" / "train.yaml")
    size, compression = [int(n) for n in image_size], [int(n) for n in compression]
    if len(size) != 3 or len(compression) != 3:
        raise ValueError(f"image_size and compression are three numbers each (H, W, D), got {size} and {compression}")
    if any(c < 1 or c & (c - 1) for c in compression) or max(compression) == 1:
        raise ValueError(f"compression must be three powers of two, at least one above 1, got {compression}")
    if min(size) < SMALLEST_SIDE:
        raise ValueError(f"every side must have at least {SMALLEST_SIDE} voxels, got {size}")
    halvings = 2 ** (len(config["channel_multipliers"]) - 1)  # the denoiser's, in plane
    divisor = [compression[0] * halvings, compression[1] * halvings, compression[2]]
    check_divisible(size, divisor)
    knobs: dict[str, Any] = {"image_size": size, "compression": compression, "axcodes": axcodes or config["axcodes"]}
    world_axes(knobs["axcodes"])
    if spacing is not None:
        knobs["spacing"] = [float(s) for s in spacing]
        if len(knobs["spacing"]) != 3 or not all(FINEST <= s <= COARSEST for s in knobs["spacing"]):
            raise ValueError(f"spacing must be three numbers from {FINEST} to {COARSEST} mm, got {list(spacing)}")
    knobs["latent_shape"] = [config["code_channels"], *(n // c for n, c in zip(size, compression))]
    return knobs


def _write_configs(
    source: Path,
    folder: Path,
    folder_name: str,
    subject: str,
    knobs: dict[str, Any],
    lines: Mapping[str, tuple[str, str]],
) -> None:
    (folder / "configs").mkdir()
    for file in COPIED:
        text = (source / "configs" / file).read_text()
        if file == "inference.json":
            text = _changed_json(text, knobs)
        elif file.endswith(".yaml"):
            text = _changed_yaml(text, lines)
            if file == "prepare.yaml" and "spacing" in knobs:
                text = _with_knob(text, "spacing", str(knobs["spacing"]), "mm")
            if file in _HEADERS:
                header = _HEADERS[file].format(bundle=folder_name, subject=subject)
                text = f"# {header}" + text[text.index("\n") :]
            text = _with_default_spacing(text, knobs)
        (folder / "configs" / file).write_text(text)


def _write_documents(source: Path, folder: Path, folder_name: str, name: str, knobs: dict[str, Any]) -> None:
    (folder / "docs").mkdir()
    metadata = json.loads((source / "configs" / "metadata.json").read_text())
    made_from = f"{source.name} {metadata['version']}"
    write_json(folder / "configs" / "metadata.json", _metadata(metadata, name, made_from, knobs))
    if (source / "LICENSE").is_file():
        shutil.copyfile(source / "LICENSE", folder / "LICENSE")
    words = {
        "name": name,
        "fill_in": FILL_IN,
        "folder": folder_name,
        "source": source.name,
        "size": times(knobs["image_size"]),
        "latent": f"{knobs['latent_shape'][0]} x " + times(knobs["latent_shape"][1:]),
    }
    (folder / "docs" / "README.md").write_text(_README.format(**words))
    (folder / "docs" / "data_license.txt").write_text(_LICENCE.format(**words))


def _lines(source: Path, knobs: dict[str, Any], given: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Id -> value and comment, for every line of the YAML files that is another than the source's."""
    unknown = set(given).difference(
        *(_top_level(source / "configs" / file) for file in COPIED if file.endswith(".yaml"))
    )
    if unknown:
        raise ValueError(f"no configuration of {source.name} has the knobs {sorted(unknown)}")
    for id, (value, _) in given.items():
        try:
            yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{id}: expected a value in YAML, got {value!r}") from error
    directions = ", ".join(_DIRECTIONS[code] for code in knobs["axcodes"])
    left_right = [axis for axis, _ in world_axes(knobs["axcodes"])].index(0)
    return {
        "image_size": (str(knobs["image_size"]), "voxels H, W, D"),
        "compression": (str(knobs["compression"]), "voxels per latent position, H, W, D"),
        "axcodes": (knobs["axcodes"], f"where H, W and D point: {directions}"),
        "embedded_cohort": ("null", "none: there is no training without dataset_dir"),
        "flip_axis": (str(left_right), f"axis of the random flip: {left_right} is {'HWD'[left_right]}, left-right"),
        "bids_suffix": ("null", "of the files, in the BIDS layout; null: another layout (BIDS is for brains)"),
        "manifest": ("null", "every scan in raw_dir is a case; or the path of a manifest"),
        **given,
    }


def _top_level(file: Path) -> set[str]:
    return set(ConfigParser.load_config_file(file))


def _changed_yaml(text: str, lines: Mapping[str, tuple[str, str]]) -> str:
    for id, (value, comment) in lines.items():
        text = _with_knob(text, id, value, comment)
    return text


def _with_knob(text: str, id: str, value: str, comment: str) -> str:
    """``text`` with another value and comment at the knob's line, the comment where the line had it."""

    def line(found: re.Match[str]) -> str:
        if TRAINED_KNOB in found[0]:
            return f'{id}: "{_trained_knob(id, yaml.safe_load(value))}"'
        column = min(found[0].find("#"), _COMMENT_COLUMN) if "#" in found[0] else _COMMENT_COLUMN
        return f"{f'{id}: {value}':<{column - 1}} # {comment}"

    return re.sub(rf"^{re.escape(id)}: [^\n]*$", line, text, flags=re.MULTILINE)


def _trained_knob(id: str, default: Any) -> str:
    """The expression of a knob that the weights' note decides, with the value before there are weights."""
    return f"{TRAINED_KNOB}'{id}', {default!r})"


def _with_lines(text: str, pattern: str, line: str) -> str:
    """``text`` with ``line``, letter by letter, for every line that the pattern finds."""
    return re.sub(pattern, lambda _: line, text, flags=re.MULTILINE)


def _changed_json(text: str, knobs: dict[str, Any]) -> str:
    for id in ("image_size", "compression", "axcodes"):
        value = json.dumps(_trained_knob(id, knobs[id]))
        text = _with_lines(text, rf'^  "{id}": .*(?<!,),?$', f'  "{id}": {value},')
    return _with_default_spacing(text, knobs)


def _with_default_spacing(text: str, knobs: dict[str, Any]) -> str:
    """The spacing of weights that came without a note."""
    if "spacing" in knobs:
        text = re.sub(r"trained_spacing\(@weights, \[[^]]*\]\)", f"trained_spacing(@weights, {knobs['spacing']})", text)
    return text


def _metadata(source: dict[str, Any], name: str, made_from: str, knobs: dict[str, Any]) -> dict[str, Any]:
    size = times(knobs["image_size"])
    metadata = {
        **source,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"made from {made_from}"},
        "name": name,
        "task": f"{FILL_IN}: such as Synthesis of 3D knee MRI",
        "description": f"{FILL_IN}: what is synthesised. VQ-GAN and latent diffusion model for volumes of {size} voxels",
        "authors": FILL_IN,
        "copyright": FILL_IN,
        "data_source": f"{FILL_IN}: whose data, and under which licence or agreement",
    }
    channels, *latent = knobs["latent_shape"]
    metadata["eval_metrics"] = {}  # those of the source are of its weights
    metadata["network_data_format"]["inputs"]["image"] |= {"num_channels": channels, "spatial_shape": latent}
    metadata["network_data_format"]["outputs"]["pred"] |= {"modality": FILL_IN, "spatial_shape": knobs["image_size"]}
    return metadata


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medical_diffusion_components.new_bundle", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--source", required=True, help="an existing latent diffusion bundle")
    parser.add_argument("--target", required=True, help="folder to make; its name is the bundle's")
    parser.add_argument("--name", required=True, help="title for people")
    parser.add_argument("--image_size", required=True, nargs=3, type=int, metavar=("H", "W", "D"), help="voxels")
    parser.add_argument(
        "--compression", required=True, nargs=3, type=int, metavar=("H", "W", "D"), help="powers of two"
    )
    parser.add_argument("--spacing", nargs=3, type=float, metavar=("H", "W", "D"), help="mm that prepare resamples to")
    parser.add_argument("--subject", default="volumes", help="what is synthesised, such as 'liver CT'")
    parser.add_argument("--axcodes", help="where H, W, D point, such as RAS or PSR; default: the source's")
    options = parser.parse_args(argv)
    try:
        made = new_bundle(**vars(options))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    needed = training_memory(made, options.image_size)
    print(f"made {made}")
    print(
        f"a training step takes {', '.join(f'{gb:.1f} GB ({stage})' for stage, gb in needed.items())} on a CPU, in float32"
    )
    print(f"now search its configs/metadata.json and docs for {FILL_IN!r}")


if __name__ == "__main__":
    main()
