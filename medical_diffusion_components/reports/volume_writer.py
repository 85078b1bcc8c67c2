"""Write synthetic volumes, each with a note that tells how to make it again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from medical_diffusion_components.data.datasets import is_synthetic, nifti_files
from medical_diffusion_components.distributed import gathered, process_rank
from medical_diffusion_components.files import write_atomically, write_json
from medical_diffusion_components.reports.drawing import montage, save_montage
from medical_diffusion_components.weights import made_with

__all__ = ["SyntheticVolumeWriter", "note_path"]


def note_path(volume: str | Path) -> Path:
    """The JSON note beside a volume: ``synthetic_000007.nii.gz`` -> ``synthetic_000007.json``."""
    return Path(str(volume).removesuffix(".gz")).with_suffix(".json")


class SyntheticVolumeWriter:
    """Attached to an evaluator, write every prediction as ``.nii.gz`` with a JSON note; afterwards, draw a montage.

    Of several processes each writes its own volumes; :meth:`draw_montage` waits for all of them. A folder with volumes that
    have no such note is refused when the evaluator starts: they may be patients, among whom synthetic ones would be lost.

    Args:
        folder: where they go.
        weights: file of the generator's weights, for its hash and its note.
        facts: what else goes into every note, such as sampler and steps.
        name: the files are ``<name>_<seed>.nii.gz``.
        window: intensities shown as black and white in the montage.
        num_in_montage: how many volumes the montage shows.
        release: judges each volume once it is written, and says when there are enough; see
            :class:`~medical_diffusion_components.audit.ReleaseFilter`. What it withholds is deleted. None keeps all.
    """

    def __init__(
        self,
        folder: str | Path,
        weights: str | Path,
        facts: Mapping[str, Any],
        name: str = "synthetic",
        window: Sequence[float] = (0.0, 255.0),
        num_in_montage: int = 8,
        release: Any = None,
    ) -> None:
        self.folder = Path(folder)
        self.weights = Path(weights)
        self.facts = dict(facts)
        self.name = name
        self.window = tuple(window)
        self.num_in_montage = num_in_montage
        self.release = release
        self.started = 0.0
        self.written: list[Path] = []

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, lambda _: self.prepare())
        evaluator.add_event_handler(Events.ITERATION_STARTED, self._start_clock)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)

    def prepare(self) -> None:
        """To be called once before the first volume is written.

        Raises:
            ValueError: the folder holds volumes that no note names as synthetic.
        """
        # each process by itself: one that has nothing to write never comes here, and whatever another one has written
        # meanwhile has its note already
        found = [volume for volume in nifti_files(self.folder) if not is_synthetic(volume)]
        if found:
            raise ValueError(
                f"{self.folder} holds volumes that no note names as synthetic, the first is {found[0]}: give an empty "
                "folder, or one of synthetic volumes, as samples_dir"
            )
        self.facts |= made_with(self.weights)
        if "window" in self.facts:
            self.facts["intensity_range"] = list(self.window)

    def _start_clock(self, evaluator: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, evaluator: Engine) -> None:
        drawn, made = evaluator.state.batch, evaluator.state.output
        seconds = (time.perf_counter() - self.started) / len(made)
        for item, output in zip(drawn, made):
            if self.release is None or not self.release.enough(self.written):
                self.write(int(item["seed"]), output["pred"], seconds)
        if self.release is not None and self.release.enough(self.written):
            evaluator.terminate()

    def path(self, seed: int) -> Path:
        """Where the volume of a seed goes."""
        return self.folder / f"{self.name}_{seed:06d}.nii.gz"

    def write(self, seed: int, volume: MetaTensor, seconds: float) -> None:
        """Write one volume and its note.

        Args:
            seed: of its starting noise.
            volume: (1, H, W, D) with an affine.
            seconds: that it took, for the note.
        """
        image = nib.Nifti1Image(volume.as_tensor().float().cpu().numpy()[0], np.asarray(volume.affine, np.float64))
        image.header.set_xyzt_units("mm")
        path, note = self.path(seed), {"seed": seed, **self.facts, "seconds": round(seconds, 3)}
        # the note first: a process that is killed leaves no volume without one
        write_json(note_path(path), note)
        write_atomically(path, lambda temporary, image=image: nib.save(image, temporary))
        if self.release is not None:
            verdict = self.release(path)
            if verdict is None:
                path.unlink()
                note_path(path).unlink()
                return
            write_json(note_path(path), {**note, "audit": verdict})
        self.written.append(path)

    def draw_montage(self) -> None:
        """Draw the first volumes that were written, whichever process made them; the first process does it.

        Raises:
            ValueError: no process has written any.
            FileNotFoundError: those of another process are out of sight, since machines do not share the folder.
        """
        written = sorted(path for paths in gathered(self.written) for path in paths)
        if self.release is not None:
            self.release.report(len(written))
        if process_rank() > 0:
            return
        images = [nib.load(path) for path in written[: self.num_in_montage]]
        if not images:
            raise ValueError(f"no synthetic volume was written to {self.folder}, so there is none to draw")
        affine = images[0].affine
        spacing, axcodes = nib.affines.voxel_sizes(affine), "".join(nib.aff2axcodes(affine))
        volumes = [np.asarray(image.dataobj) for image in images]
        figure = montage({"synthetic volumes": volumes}, spacing, self.window, axcodes=axcodes)
        path = self.folder / "montage.png"
        save_montage(figure, path)
        print(f"wrote {self.folder}\nmontage: {path}", flush=True)
