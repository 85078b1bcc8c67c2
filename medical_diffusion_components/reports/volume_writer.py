"""Write synthetic volumes, each with a note that says how to make it again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from medical_diffusion_components.data.conditions import Conditions
from medical_diffusion_components.data.datalists import NIFTI_SUFFIXES
from medical_diffusion_components.data.volume_notes import is_synthetic, note_path
from medical_diffusion_components.distributed import gathered, process_rank
from medical_diffusion_components.engine_state import running
from medical_diffusion_components.files import (
    check_writable,
    files_below,
    unfinished_folder,
    write_atomically,
    write_json,
)
from medical_diffusion_components.weights import made_with

__all__ = [
    "NiftiVolumes",
    "SyntheticVolumeWriter",
    "VolumeFormat",
    "nifti_image",
    "remove_volume",
    "volume_format",
    "with_note",
]


def with_note(path: Path, note: Mapping[str, Any], write: Callable[[Path], object]) -> Callable[[Path], None]:
    """``write`` of a volume, to be called as :func:`write_atomically` does, which also writes the note beside ``path``.

    A process may be killed at any moment: a volume that is there has its own note. In between a note stands alone, since
    the former volume goes before its note does, and the new one comes after its own.
    """

    def write_both(temporary: Path) -> None:
        write(temporary)
        new = write_json(temporary.with_name("note.json"), note)
        if path.exists():
            os.replace(path, temporary.with_name("former"))
        os.replace(new, note_path(path))

    return write_both


def nifti_image(volume: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A volume (H, W, D) as it is written, in millimetres."""
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    return image


class VolumeFormat(Protocol):
    """How a volume lies on the disk."""

    def path(self, folder: Path, stem: str) -> Path:
        """The file or the folder of a volume."""

    def save(self, path: Path, volume: np.ndarray, affine: np.ndarray, note: Mapping[str, Any]) -> None:
        """Write a volume (H, W, D) and its note, whole or not at all, by :func:`with_note`."""

    def load(self, path: Path, note: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """A volume as :meth:`save` was given it, axes in whatever order, and its affine."""


class NiftiVolumes:
    """One ``.nii.gz`` per volume, float32."""

    def path(self, folder: Path, stem: str) -> Path:
        return folder / f"{stem}.nii.gz"

    def save(self, path: Path, volume: np.ndarray, affine: np.ndarray, note: Mapping[str, Any]) -> None:
        write_atomically(path, with_note(path, note, partial(nib.save, nifti_image(volume, affine))))

    def load(self, path: Path, note: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        image = nib.Nifti1Image.from_filename(path)
        return np.asarray(image.dataobj), image.affine


Format = TypeVar("Format", bound=VolumeFormat)


def volume_format(name: str, formats: Mapping[str, Format | None] | None = None) -> NiftiVolumes | Format:
    """The form in which volumes are written: ``nifti``, or a name in ``formats``.

    Raises:
        ValueError: an output format that there is not, or that was not made ready.
    """
    known: dict[str, NiftiVolumes | Format | None] = {"nifti": NiftiVolumes(), **(formats or {})}
    chosen = known.get(name)
    if chosen is None:
        raise ValueError(f"expected an output_format of {sorted(known)}, got {name!r}")
    return chosen


class SyntheticVolumeWriter:
    """Attached to an evaluator, write every prediction with a JSON note; afterwards, draw a montage.

    Where tqdm is installed, a bar shows progress. Of several processes each writes its own volumes; :meth:`draw_montage`
    waits for all of them. A folder with volumes that have no such note is refused when the evaluator starts: they may be
    patients, among whom synthetic ones would be lost. So is one with volumes in another format, whose notes would be
    replaced. Volumes of other weights or settings are counted in a last line.

    Args:
        folder: where they go.
        weights: file of the generator's weights, for its hash and its note.
        facts: what else goes into every note, such as sampler and steps.
        name: the files are ``<name>_<seed>.nii.gz``, or the folders ``<name>_<seed>``.
        window: intensities shown as black and white in the montage.
        num_in_montage: how many volumes the montage shows.
        release: judges each volume once it is written, and says when there are enough; see
            :class:`~medical_diffusion_components.audit.ReleaseFilter`. What it withholds is deleted. None keeps all.
        output_format: ``nifti``, or a name in ``formats``.
        formats: further forms in which volumes can be written; None is one that was not made ready.
        conditions: those that the weights were trained with; each volume's go into its note.

    Raises:
        ValueError: an output format that there is not.
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
        output_format: str = "nifti",
        formats: Mapping[str, VolumeFormat | None] | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        self.format: VolumeFormat = volume_format(output_format, formats)
        self.folder = Path(folder)
        self.weights = Path(weights)
        self.facts = dict(facts)
        self.name = name
        self.window = (window[0], window[1])
        self.num_in_montage = num_in_montage
        self.release = release
        self.output_format = output_format
        self.conditions = conditions or Conditions()
        self.started = 0.0
        self.written: list[Path] = []
        self.num_foreign = 0  # volumes of other weights or settings that were there before
        self.bar: Any = None  # of tqdm; an environment with MONAI alone has none

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.STARTED, self._start)
        evaluator.add_event_handler(Events.ITERATION_STARTED, self._start_clock)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)
        evaluator.add_event_handler(Events.TERMINATE | Events.COMPLETED, self._close_bar)

    def _start(self, evaluator: Engine) -> None:
        self.prepare()
        if find_spec("tqdm") is None:
            return
        from tqdm import tqdm

        cases = running(evaluator).dataloader
        # how many a filter will have to judge is not known beforehand
        total = len(getattr(cases, "dataset", cases)) if self.release is None else None
        self.bar = tqdm(desc="sampling", total=total, unit="volume", disable=process_rank() > 0)

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def prepare(self) -> None:
        """To be called once before the first volume is written.

        Raises:
            ValueError: the folder holds volumes that no note names as synthetic, or volumes of another format.
            OSError: the folder cannot be written.
        """
        check_writable(self.folder)
        # each process by itself: one that has nothing to write never comes here, and whatever another one has written
        # meanwhile has its note already
        found = files_below(self.folder).files
        files = [path for path in found if path.name.lower().endswith(NIFTI_SUFFIXES)]
        series = sorted({path.parent for path in found if path.suffix.lower() == ".dcm"})
        unknown = [volume for volume in (*files, *series) if not is_synthetic(volume)]
        if unknown:
            raise ValueError(
                f"{self.folder} holds volumes that no note names as synthetic, the first is {unknown[0]}: give an empty "
                "folder, or one of synthetic volumes, as samples_dir"
            )
        if others := files if self.output_format == "dicom" else series:
            raise ValueError(
                f"{self.folder} holds synthetic volumes of another format than {self.output_format}, the first is "
                f"{others[0]}: give another samples_dir"
            )
        self.facts |= made_with(self.weights)
        notes = [json.loads(note_path(volume).read_text()) for volume in (*files, *series)]
        own = json.loads(json.dumps({key: value for key, value in self.facts.items() if key != "versions"}))
        self.num_foreign = sum(any(note.get(key) != own[key] for key in own) for note in notes)
        if "window" in self.facts:
            self.facts["intensity_range"] = list(self.window)

    def _start_clock(self, evaluator: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, evaluator: Engine) -> None:
        state = running(evaluator)
        seconds = (time.perf_counter() - self.started) / len(state.output)
        for item, output in zip(state.batch, state.output):
            if self.release is None or not self.release.enough(self.written):
                self.write(int(item["seed"]), output["pred"], seconds, item.get("conditions"))
                if self.bar is not None:
                    self.bar.update()
        if self.release is not None and self.release.enough(self.written):
            evaluator.terminate()

    def path(self, seed: int) -> Path:
        """Where the volume of a seed goes."""
        return self.format.path(self.folder, f"{self.name}_{seed:06d}")

    def write(
        self,
        seed: int,
        volume: MetaTensor,
        seconds: float,
        conditions: Tensor | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one volume and its note.

        Args:
            seed: of its starting noise.
            volume: (1, H, W, D) with an affine.
            seconds: that it took, for the note.
            conditions: under which it was made, (V,), if there are any; those beyond the range of the training are named.
            facts: of this volume alone, for its note.
        """
        voxels = volume.as_tensor().float().cpu().numpy()[0]  # (H, W, D)
        affine = np.asarray(volume.affine, np.float64)
        path, note = self.path(seed), {"seed": seed, **self.facts, **(facts or {}), "seconds": round(seconds, 3)}
        if self.conditions and conditions is not None:
            note["conditions"] = self.conditions.decode(conditions)
            if extrapolated := self.conditions.extrapolated(conditions):
                note["extrapolated_conditions"] = extrapolated
        if self.release is not None:
            verdict = self._verdict(path, voxels, affine, note)
            if verdict is None:
                remove_volume(path)  # of an earlier run that did not ask
                return
            note["audit"] = verdict
        self.format.save(path, voxels, affine, note)
        self.written.append(path)

    def _verdict(self, path: Path, voxels: np.ndarray, affine: np.ndarray, note: Mapping[str, Any]) -> Any:
        """What the release filter says of a volume, as the audit reads it: from a NIfTI file, whatever the format."""
        with unfinished_folder(path.with_name(f"{path.name}.judged")) as folder:
            candidate = NiftiVolumes().path(folder, path.name.removesuffix(".nii.gz"))
            NiftiVolumes().save(candidate, voxels, affine, note)
            return self.release(candidate)

    def draw_montage(self) -> None:
        """Draw the first volumes that were written, whichever process made them; the first process does it.

        Where matplotlib is not installed, as in an environment with MONAI alone, there is no picture, and a line says so.

        Raises:
            ValueError: no process has written any.
            FileNotFoundError: those of another process are out of sight, since machines do not share the folder.
        """
        written = sorted(path for paths in gathered(self.written) for path in paths)
        if self.release is not None:
            self.release.report(len(written))
        if process_rank() > 0:
            return
        read = [
            self.format.load(path, json.loads(note_path(path).read_text())) for path in written[: self.num_in_montage]
        ]
        if not read:
            raise ValueError(f"no synthetic volume was written to {self.folder}, so there is none to draw")
        volumes, (affine, *_) = zip(*read)
        spacing, axcodes = nib.affines.voxel_sizes(affine), "".join(nib.aff2axcodes(affine))
        wrote = f"wrote {self.folder}"
        if self.num_foreign:
            wrote += (
                f"\nremark: {self.num_foreign} volumes there were of other weights or settings; those of equal seeds were "
                "replaced"
            )
        if find_spec("matplotlib") is None:
            print(f"{wrote}\nno montage: matplotlib is not installed", flush=True)
            return
        from medical_diffusion_components.reports.drawing import montage, save_montage

        figure = montage({"synthetic volumes": volumes}, spacing, self.window, axcodes=axcodes)
        path = self.folder / "montage.png"
        save_montage(figure, path)
        print(f"{wrote}\nmontage: {path}", flush=True)


def remove_volume(path: Path) -> None:
    """Delete a volume and its note, if they are there; a folder with more than images in it is left, with an error."""
    if path.is_dir():
        for image in path.glob("*.dcm"):
            image.unlink()
        path.rmdir()
    path.unlink(missing_ok=True)
    note_path(path).unlink(missing_ok=True)
