"""Write down what an evaluation found, and show it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from medical_diffusion_components.montage import montage, save_montage
from medical_diffusion_components.transforms.noise_latent import NoiseLatent
from medical_diffusion_components.weights import versions, write_atomically

__all__ = ["EvaluationReport"]


class EvaluationReport:
    """Attached to the evaluator of reconstructions, write ``evaluation.json`` and a montage beside it.

    The montage shows synthetic volumes above held-out ones and their reconstructions.

    Args:
        folder: where both go.
        generator: noise latent -> volume.
        latent_shape: (C, h, w, d).
        facts: what else goes into the report, such as the data's hash and the number of codes.
        num_volumes: columns of the montage.
        seed: seed of the first synthetic volume.
        spacing: mm per voxel.
        axcodes: where H, W and D point in the patient.
    """

    def __init__(
        self,
        folder: str | Path,
        generator: nn.Module,
        latent_shape: Sequence[int],
        facts: Mapping[str, Any],
        num_volumes: int = 6,
        seed: int = 0,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        axcodes: str = "RAS",
    ) -> None:
        self.folder = Path(folder)
        self.generator = generator
        self.noise = NoiseLatent(latent_shape, seed)
        self.facts = dict(facts)
        self.num_volumes = num_volumes
        self.spacing = list(spacing)
        self.axcodes = axcodes
        self.real: list = []
        self.reconstructed: list = []

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.COMPLETED, self)

    def _collect(self, evaluator: Engine) -> None:
        output = evaluator.state.output
        for key, collected in (("image", self.real), ("pred", self.reconstructed)):
            room = max(self.num_volumes - len(collected), 0)
            collected += [volume[0].float().cpu().numpy() for volume in output[key][:room]]

    @torch.no_grad()
    def __call__(self, evaluator: Engine) -> None:
        self.generator.eval()
        synthetic = [
            self.generator(self.noise(number)[None].to(evaluator.state.device))[0, 0].cpu().numpy()
            for number in range(self.num_volumes)
        ]
        metrics = {name: round(float(value), 5) for name, value in evaluator.state.metrics.items()}
        report = json.dumps({"metrics": metrics, **self.facts, "versions": versions()}, indent=2)
        write_atomically(self.folder / "evaluation.json", lambda temporary: temporary.write_text(report))
        groups = {
            "synthetic volumes": synthetic,
            "volumes of the test split": self.real,
            "their reconstructions by the first stage": self.reconstructed,
        }
        path = self.folder / "evaluation.png"
        save_montage(montage(groups, self.spacing, axcodes=self.axcodes), path)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"test split: {shown}\nmontage: {path}", flush=True)
