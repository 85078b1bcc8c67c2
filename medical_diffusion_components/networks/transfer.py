"""Weights of the inpainting pre-training as the start of a segmentation, part by part, nothing left out silently.

Self-supervised pre-training of a Swin UNETR and its transfer: Tang et al., "Self-supervised pre-training of Swin
transformers for 3D medical image analysis", CVPR 2022. Pre-training on synthetic volumes by inpainting: Khader et al.,
Scientific Reports 13, 7303 (2023).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from medical_diffusion_components.distributed import process_rank
from medical_diffusion_components.files import file_hash, write_json
from medical_diffusion_components.weights import WeightsError, provenance, read_state, tensor_differences

__all__ = ["PARTS", "TransferReport", "start_from", "transfer_weights"]

logger = logging.getLogger(__name__)

# Of MONAI's SwinUNETR. The encoder is the Swin transformer and the convolutions that its features and the image pass
# before the decoder sees them (the skip connections and the bottleneck).
PARTS = {
    "encoder": ("swinViT.", "encoder1.", "encoder2.", "encoder3.", "encoder4.", "encoder10."),
    "decoder": ("decoder5.", "decoder4.", "decoder3.", "decoder2.", "decoder1."),
}
HEAD = "out."


class TransferReport(NamedTuple):
    """Which tensors of a network came from a file.

    ``sha256`` is the file's; ``loaded`` are names; ``left`` maps names of tensors that stay at random to the reason;
    ``unused`` maps names in the file that went nowhere to the reason.
    """

    sha256: str
    parts: tuple[str, ...]
    loaded: tuple[str, ...]
    left: Mapping[str, str]
    unused: Mapping[str, str]

    def summary(self) -> str:
        """One line for the log."""
        reasons = sorted(set(self.left.values()))
        rest = f"; at random: {len(self.left)} ({'; '.join(reasons)})" if self.left else ""
        unused = f"; unused tensors of the file: {len(self.unused)}" if self.unused else ""
        return f"{len(self.loaded)} tensors loaded ({', '.join(self.parts)}){rest}{unused}"


def transfer_weights(
    network: nn.Module, path: str | os.PathLike, parts: Sequence[str] = ("encoder", "decoder")
) -> TransferReport:
    """Load parts of a Swin UNETR's state dict into ``network``.

    The output head goes with the decoder, and only if it has the same shape: that of a pre-training predicts intensities.

    Args:
        network: MONAI's ``SwinUNETR``.
        path: ``models/model.pt`` of ``swin_unetr_pretrain``, a plain state dict.
        parts: what to load, of ``encoder`` and ``decoder`` (see ``PARTS``).

    Raises:
        ValueError: unknown parts, or none.
        WeightsError: the file is missing, damaged or no state dict; or a tensor of the wanted parts is missing in it, has
            another shape, or is one that the network does not have. ``network`` is then as it was.
    """
    parts = tuple(parts)
    if not parts or not set(parts) <= PARTS.keys():
        raise ValueError(f"parts to load must be some of {', '.join(PARTS)}, got {list(parts)}")
    if not Path(path).is_file():
        raise WeightsError(
            f"expected pre-trained weights at {path}, but there is no such file; without pretrained_weights training "
            "starts from scratch"
        )
    found = read_state(path)
    wanted = network.state_dict()
    prefixes = tuple(prefix for part in parts for prefix in PARTS[part])
    here, there = ({n: t for n, t in state.items() if n.startswith(prefixes)} for state in (wanted, found))
    _check(Path(path), parts, here, there)
    names = list(here)
    left = {}
    for name in wanted:
        if name in names:
            continue
        if not name.startswith(HEAD):
            left[name] = f"not among the parts {', '.join(parts)}"
        elif "decoder" not in parts:
            left[name] = "the output head goes with the decoder"
        elif name not in found or found[name].shape != wanted[name].shape:
            shape = tuple(found[name].shape) if name in found else "no such tensor"
            left[name] = f"the output head is another one: {tuple(wanted[name].shape)}, in the file {shape}"
        else:
            names.append(name)
    unused = {name: left.get(name, "the network has no such tensor") for name in sorted(found.keys() - set(names))}
    network.load_state_dict({**wanted, **{name: found[name] for name in names}})
    return TransferReport(file_hash(path), parts, tuple(names), left, unused)


def start_from(
    network: nn.Module, path: str | os.PathLike | None, parts: Sequence[str], folder: str | os.PathLike
) -> TransferReport | None:
    """What a training starts from: load the weights at ``path``, or none, say so, and write ``transfer.json``.

    Args:
        network: MONAI's ``SwinUNETR``.
        path: pre-trained weights; None: from scratch.
        parts: as for :func:`transfer_weights`.
        folder: gets ``transfer.json``, by the first rank.
    """
    report = None
    if path is None:
        note: dict[str, Any] = {"pretrained": None}
        message = "from scratch: no pretrained_weights were given, all weights start at random"
    else:
        report = transfer_weights(network, path, parts)
        made_from = provenance(path).get("data", "unknown: the weights came without a note")
        note = {"pretrained": report._asdict(), "made_from": made_from}
        message = f"from {path}, pre-trained on: {made_from}\n{report.summary()}"
    if process_rank() == 0:
        logger.info(f"training starts {message}")
        write_json(Path(folder) / "transfer.json", note)
    return report


def _check(path: Path, parts: Sequence[str], wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    difference = tensor_differences(wanted, found)
    if not difference:
        return
    here, there = _sizes(wanted), _sizes(found)
    advice = "; ".join(
        f"the file's {knob} is {there[knob]}, the network's {here[knob]}"
        for knob in here
        if knob in there and here[knob] != there[knob]
    )
    raise WeightsError(
        f"{path} does not fit the {' and '.join(parts)} of the network: "
        + (f"{advice}: give the fine-tuning the sizes of the pre-training. " if advice else "is it of a Swin UNETR? ")
        + f"Tensors: {difference}"
    )


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The knobs of a Swin UNETR that its tensors tell."""
    sizes: dict[str, Any] = {}
    patches = state.get("swinViT.patch_embed.proj.weight")  # (feature_size, image_channels, 2, 2, 2)
    if patches is None:
        patches = state.get("encoder1.layer.conv1.conv.weight")  # (feature_size, image_channels, 3, 3, 3)
    if patches is not None and patches.ndim == 5:
        sizes["feature_size"], sizes["image_channels"] = patches.shape[:2]
    tables = [name for name in state if name.endswith("relative_position_bias_table")]  # ((2 w - 1)^3, heads)
    if tables:
        stages = sorted({name.split(".")[1] for name in tables})
        sizes["depths"] = [sum(name.split(".")[1] == stage for name in tables) for stage in stages]
        first = [next(state[name] for name in tables if name.split(".")[1] == stage) for stage in stages]
        sizes["num_heads"] = [table.shape[1] for table in first]
        side = round(first[0].shape[0] ** (1 / 3))
        if side**3 == first[0].shape[0]:
            sizes["window_size"] = (side + 1) // 2
    return sizes
