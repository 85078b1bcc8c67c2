"""Write down what an evaluation found, and show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from medical_diffusion_components.data.training_of_weights import without_hashes
from medical_diffusion_components.diffusion.noise_latent import NoiseLatent
from medical_diffusion_components.engine_state import running
from medical_diffusion_components.files import check_writable, versions, write_json
from medical_diffusion_components.reports.drawing import save_montage
from medical_diffusion_components.reports.montages import VolumePictures, sampled

__all__ = ["TEST_ROWS", "EvaluationReport"]

TEST_ROWS = {"volumes of the test split": "image", "their reconstructions by the first stage": "pred"}


class EvaluationReport:
    """Attached to the evaluator of reconstructions, write what was measured as JSON and a montage beside it.

    The montage shows held-out volumes and their reconstructions, below synthetic ones if there is a generator.

    Args:
        folder: where both go.
        facts: what else goes into the report, such as the data's hash and the number of codes.
        generator: noise latent -> volume, or None.
        latent_shape: (C, h, w, d) of the generator.
        seed: seed of the first synthetic volume.
        rows: heading -> key of ``evaluator.state.output``, from top to bottom.
        name: of the JSON file; the montage has the same with ``.png``.
        shown: of the montage: ``num_volumes`` (6), ``spacing`` in mm and ``axcodes``.
    """

    def __init__(
        self,
        folder: str | Path,
        facts: Mapping[str, Any],
        generator: nn.Module | None = None,
        latent_shape: Sequence[int] = (),
        seed: int = 0,
        rows: Mapping[str, str] = TEST_ROWS,
        name: str = "evaluation.json",
        **shown: Any,
    ) -> None:
        self.name = name
        self.folder = Path(folder)
        self.facts = without_hashes(facts)
        self.generator = generator
        self.noise = NoiseLatent(latent_shape, seed)
        self.pictures = VolumePictures(rows, **shown)

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, lambda _: check_writable(self.folder))
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        evaluator.add_event_handler(Events.COMPLETED, self)

    def _collect(self, evaluator: Engine) -> None:
        self.pictures.collect(running(evaluator).output)

    def __call__(self, evaluator: Engine) -> None:
        metrics = {name: float(value) for name, value in evaluator.state.metrics.items()}
        rounded = {name: round(value, 5) for name, value in metrics.items()}
        write_json(self.folder / self.name, {"metrics": rounded, **self.facts, "versions": versions()})
        if self.generator is not None:
            samples = sampled(self.generator, self.noise, self.pictures.num_volumes, running(evaluator).device)
            self.pictures.volumes = {"synthetic volumes": samples, **self.pictures.volumes}
        path = (self.folder / self.name).with_suffix(".png")
        save_montage(self.pictures.figure(), path)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"test split: {shown}\nmontage: {path}", flush=True)
