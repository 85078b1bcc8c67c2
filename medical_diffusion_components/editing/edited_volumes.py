"""Edited scans on the disk: outside the region the bits of the scan's own file, and a note that says what they are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from medical_diffusion_components.editing.scans import Grid, Scan
from medical_diffusion_components.files import file_hash, write_atomically
from medical_diffusion_components.reports.volume_writer import NiftiVolumes, VolumeFormat, volume_format, with_note
from medical_diffusion_components.transforms.volume_error import VolumeError
from medical_diffusion_components.weights import made_with

__all__ = ["EditedVolumeWriter"]


class EditedFormat(VolumeFormat, Protocol):
    """A form that cannot hold every scan."""

    def check(self, affine: np.ndarray, low: float, high: float) -> None:
        """Raise a ValueError if intensities from ``low`` to ``high`` on this grid cannot be written."""


class EditedVolumeWriter:
    """Writes ``<operation>_<hash>_<number>_edited.nii.gz`` and a note beside it; nothing in either names a patient.

    The note has ``"synthetic": false`` and ``edited_from`` with the hashes of the files that it was made from.

    Args:
        folder: where they go.
        weights: file of the generator's weights.
        facts: what else goes into every note.
        output_format: ``nifti``, or a name in ``formats``.
        formats: further forms; None is one that was not made ready.

    Raises:
        ValueError: an output format that there is not.
    """

    def __init__(
        self,
        folder: str | Path,
        weights: str | Path,
        facts: Mapping[str, Any],
        output_format: str = "nifti",
        formats: Mapping[str, EditedFormat | None] | None = None,
    ) -> None:
        self.format = volume_format(output_format, formats)
        self.folder = Path(folder)
        self.weights = Path(weights)
        self.facts = dict(facts)

    def check(self, scan: Scan, low: float, high: float) -> None:
        """To be called before anything is drawn.

        Args:
            scan: what will be edited.
            low: the least intensity that the result may have.
            high: the greatest.

        Raises:
            VolumeError: the output format cannot hold the result.
        """
        if isinstance(self.format, NiftiVolumes):
            return
        try:
            self.format.check(scan.affine, low, high)
        except ValueError as error:
            raise VolumeError(f"{scan.path}: {error}") from error

    def region(
        self,
        scan: Scan,
        mask: np.ndarray,
        mask_path: str | Path,
        inside: np.ndarray,
        seed: int,
        facts: Mapping[str, Any],
    ) -> np.ndarray:
        """Write a scan with other intensities in a region, in the data type and with the scaling of its file.

        Args:
            scan: as it was read.
            mask: (X, Y, Z) bool, the region.
            mask_path: its file, for its hash.
            inside: intensities of the region, (N,) in the order of ``scan.values[mask]``.
            seed: what they were drawn from.
            facts: of this volume, for its note.

        Returns:
            the intensities that were written, (X, Y, Z) float64.
        """
        image = _with_region(scan, mask, inside)
        values = np.asarray(image.dataobj, np.float64)
        slope, inter = image.header.get_slope_inter()
        values = values * (1.0 if slope is None else slope) + (inter or 0.0)
        sources = {"image_sha256": file_hash(scan.path), "mask_sha256": file_hash(mask_path)}
        path, note = self._note("inpaint", sources, seed, facts)
        if isinstance(self.format, NiftiVolumes):
            write_atomically(path, with_note(path, note, partial(nib.save, image)))
        else:
            self.format.save(path, values, scan.affine, note)
        return values

    def whole(
        self, operation: str, scans: list[Scan], volume: np.ndarray, grid: Grid, seed: int, number: int, facts: Mapping
    ) -> Path:
        """Write a volume that was made from one scan or two as a whole, on the model's grid.

        Args:
            operation: ``vary`` or ``interpolate``.
            scans: what it was made from.
            volume: (H, W, D), intensities of the first scan.
            grid: where it lies.
            seed: of the noise.
            number: which of those that were made with this seed.
            facts: of this volume, for its note.
        """
        sources = {name: file_hash(scan.path) for name, scan in zip(("image_sha256", "other_sha256"), scans)}
        path, note = self._note(operation, sources, seed, facts, f"_{number:02d}")
        self.format.save(path, volume.astype(np.float32), grid.affine, note)
        return path

    def _note(
        self, operation: str, sources: Mapping[str, str], seed: int, facts: Mapping[str, Any], number: str = ""
    ) -> tuple[Path, dict[str, Any]]:
        """Where a volume goes, and its note."""
        path = self.format.path(self.folder, f"{operation}_{sources['image_sha256'][:12]}_{seed:06d}{number}_edited")
        note = {
            "synthetic": False,
            "edited_from": dict(sources),
            "operation": operation,
            "seed": seed,
            **self.facts,
            **facts,
            **made_with(self.weights),
        }
        return path, note


def _with_region(scan: Scan, mask: np.ndarray, inside: np.ndarray) -> nib.Nifti1Image:
    """An image whose stored numbers are those of the scan's file but in the region; no text of its header is kept."""
    source = cast(ArrayProxy, scan.image.dataobj)
    stored = np.array(source.get_unscaled()).reshape(scan.values.shape)
    slope, inter = float(source.slope), float(source.inter)
    numbers = (inside - inter) / slope
    if stored.dtype.kind in "biu":
        limits = np.iinfo(stored.dtype)
        numbers = np.rint(numbers).clip(limits.min, limits.max)
    stored[mask] = numbers.astype(stored.dtype)
    image = nib.Nifti1Image(stored, scan.affine, dtype=stored.dtype)
    image.set_sform(*scan.image.get_sform(coded=True))
    image.set_qform(*scan.image.get_qform(coded=True))
    image.header.set_xyzt_units("mm")
    if (slope, inter) != (1.0, 0.0):
        image.header.set_slope_inter(slope, inter)  # the numbers are stored as they are
    return image
