"""Volumes that a generator bundle synthesises while another network trains on them."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import ImageMetaKey
from torch.utils.data import get_worker_info

from medical_diffusion_components.chance import derive_seed
from medical_diffusion_components.data.datasets import data_fingerprint, load_cases
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.orientation import world_axes
from medical_diffusion_components.transforms.scale_as_prepared import scale_facts
from medical_diffusion_components.weights import load_weights, provenance

__all__ = ["SampledVolumes", "VolumeSampler", "describe_sampling"]


class VolumeSampler:
    """Seed -> the volume that the ``inference.json`` of an ``*_ldm`` bundle writes for it: intensities, affine and all.

    Args:
        bundle: the generator's folder, with ``configs`` and ``models``.
        config: configurations, later ones on top; names are looked for in the bundle's ``configs``, then as paths.
        settings: id -> value, what differs from the configurations, such as the sampler or ``models_dir``.
        device: where to sample.

    Raises:
        FileNotFoundError: a configuration is not there.
        ValueError: an id in ``settings`` that the configurations do not have.
        WeightsError: the generator's weights are missing, damaged, or of another architecture.
    """

    def __init__(
        self,
        bundle: str | os.PathLike,
        config: Sequence[str] = ("inference.json",),
        settings: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.root = Path(bundle).expanduser().resolve()
        settings = dict(settings or {})
        self.device = torch.device(device)
        parser = ConfigParser()
        parser.read_config([_found(self.root, name) for name in config])
        for id in settings:
            if id not in parser.get():
                nearest = difflib.get_close_matches(id, parser.get(), n=1)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                raise ValueError(f"{id} is no setting of the generator {self.root}{hint}")
        parser.update({"bundle_root": str(self.root), **settings})
        self.weights = Path(parser.get_parsed_content("weights"))
        network = parser.get_parsed_content("network_def")
        weights_sha256 = load_weights(network, self.weights, parser.get_parsed_content("knobs"))
        self.network = network.to(self.device).eval()
        self.noise = NoiseLatent(parser.get_parsed_content("latent_shape"))
        id = "requested_conditions"  # which a generator of another kind has none of
        self.requested: Any = parser.get_parsed_content(id) if id in parser.get() else None
        self.finish = parser.get_parsed_content("postprocessing")
        self.axcodes = str(parser.get_parsed_content("axcodes"))
        self.facts = {
            "generator_sha256": weights_sha256,
            "sampler": parser.get_parsed_content("sampler"),
            "steps": parser.get_parsed_content("num_inference_steps"),
        }
        self.scale = scale_facts(parser.get_parsed_content("intensity_range"), provenance(self.weights).get("window"))
        self._spacing = [float(s) for s in parser.get_parsed_content("spacing")]

    @torch.no_grad()
    def __call__(self, seed: int) -> MetaTensor:
        """The volume (C, H, W, D) of ``seed``, a function of it and of the weights alone.

        Raises:
            ValueError: asked for in a loader's process, which cannot use the GPU of the main one.
        """
        if self.device.type == "cuda" and get_worker_info() is not None:
            raise ValueError(
                "sampling on a GPU while training needs num_workers 0: loader processes cannot share the GPU"
            )
        noise = self.noise(seed)[None].to(self.device)
        conditional = self.requested is not None and self.requested.conditions
        volume = self.network(noise, *([self.requested(seed)[None].to(self.device)] if conditional else []))[0]
        finished = self.finish({"pred": volume.cpu()})["pred"]
        finished.meta[ImageMetaKey.FILENAME_OR_OBJ] = f"volume {seed} of the generator {self.root}"
        return finished

    def spacing(self, axcodes: str) -> list[float]:
        """Voxel spacing in mm along the axes ``axcodes``."""
        along = {axis: length for (axis, _), length in zip(world_axes(self.axcodes), self._spacing)}
        return [along[axis] for axis, _ in world_axes(axcodes)]


class SampledVolumes(Sequence):
    """Entries like those that a loaded file would give, synthesised when asked for.

    Volume k of epoch e follows from (seed, e, k), whatever process or rank draws it; an index from
    :class:`~medical_diffusion_components.data.loading.ResumableSampler` knows its epoch, a plain one is of epoch 0.
    Training counts epochs from 1, so the volumes of plain indices are held out.

    Args:
        sampler: seed -> volume.
        num_volumes: how many there are in an epoch.
        seed: with epoch and index it fixes the volume.
        axcodes: where H, W and D are to point in the patient.

    Raises:
        ValueError: no volumes.
    """

    def __init__(self, sampler: VolumeSampler, num_volumes: int, seed: int = 0, axcodes: str = "RAS") -> None:
        if num_volumes < 1:
            raise ValueError(f"expected at least 1 volume to sample, got {num_volumes}")
        self.sampler = sampler
        self.num_volumes = int(num_volumes)
        self.seed = int(seed)
        self.orient = Orientation(axcodes=axcodes, labels=None)

    def __len__(self) -> int:
        return self.num_volumes

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # no slices: MONAI asks for one by one
        """``image`` (C, H, W, D) with its affine, and ``case_id``."""
        if not 0 <= index < self.num_volumes:
            raise IndexError(f"volume {int(index)} of {self.num_volumes}")
        seed = derive_seed(self.seed, getattr(index, "epoch", 0), index)
        return {
            "image": self.orient(self.sampler(seed)),
            "case_id": f"sampled_{seed:010d}",
            **self.sampler.scale,
        }


def describe_sampling(sampler: VolumeSampler, held_out_dir: str | None = None) -> dict[str, Any]:
    """What goes into the note beside weights that were trained on sampled volumes; no path and no identifier.

    Args:
        sampler: where they come from.
        held_out_dir: folder of the volumes that it was validated with, if they were files.
    """
    made = provenance(sampler.weights)
    held_out = None if held_out_dir is None else data_fingerprint(load_cases(held_out_dir, "validation"))
    facts = {**sampler.facts, "held_out_sha256": held_out}
    return {
        "data": f"sampled while training from {sampler.root.name}, itself trained on: {made.get('data', 'unknown')}",
        "notice": made.get("notice"),
        "data_sha256": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
        **facts,
        **({"window": made["window"]} if "window" in made else {}),
    }


def _found(root: Path, name: str) -> str:
    for path in (root / "configs" / name, Path(name).expanduser()):
        if path.is_file():
            return str(path)
    raise FileNotFoundError(
        f"no configuration {name} in {root / 'configs'}: generator must be the folder of an *_ldm bundle, and "
        "generator_config names of its configurations, or paths"
    )
