"""The operations of ``edit.yaml``: a region redrawn, variations of a scan, and volumes between two scans."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medical_diffusion_components.editing.edit_page import Edit, write_edit_page
from medical_diffusion_components.editing.edited_volumes import EditedVolumeWriter
from medical_diffusion_components.editing.latent_editor import LatentEditor, jump_schedule
from medical_diffusion_components.editing.pasting import blended, filled, ring, seam
from medical_diffusion_components.editing.reach import free_positions
from medical_diffusion_components.editing.scans import (
    Grid,
    Scan,
    model_grid,
    read_mask,
    read_scan,
    remarks_on_mask,
    remarks_on_scan,
)
from medical_diffusion_components.files import check_writable
from medical_diffusion_components.losses.ms_ssim import MSSSIMLoss
from medical_diffusion_components.transforms.scale_as_prepared import scale_beside
from medical_diffusion_components.transforms.volume_error import VolumeError, times

__all__ = ["ScanEditing"]

logger = logging.getLogger(__name__)

UNLIKE, ALIKE = 0.1, 0.9  # difference and correlation between a scan and its reconstruction that are remarked on
OPERATIONS = ("inpaint", "vary", "interpolate")


class _Seen(NamedTuple):
    """A scan as the model sees it: (H, W, D) in [-1, 1] on ``grid``, where -1 and 1 are the intensities ``limits``."""

    scan: Scan
    grid: Grid
    limits: tuple[float, float]
    volume: np.ndarray

    def intensities(self, scaled: np.ndarray) -> np.ndarray:
        """From [-1, 1] to the scan's own."""
        low, high = self.limits
        return (scaled + 1) / 2 * (high - low) + low


class ScanEditing:
    """Edits a user's scan and writes the results, each with its note, and a page to look at.

    Args:
        editor: draws in the latent.
        writer: of the results.
        page: path of the page.
        image_size: the model's voxels (H, W, D).
        spacing: mm per voxel that it was trained with.
        axcodes: where its H, W and D point.
        centre: mm in RAS on which the model's grid is centred where the scan has another size; None: the scan's content.
        limits: intensities that are -1 and 1; None: those of the ``dataset.json`` that lists the scan, or else the least
            and the greatest that is known.
        tolerance: see :func:`~medical_diffusion_components.editing.free_positions`.
        blend_length: mm within which what is drawn takes over from a smooth continuation of the scan, see
            :func:`~medical_diffusion_components.editing.blended`; None: a voxel of the model's.
        notice: what the model was trained on, for the page.
        device: where to compute.
        modality: that the model was trained on, such as ``MR``; None: any.
    """

    def __init__(
        self,
        editor: LatentEditor,
        writer: EditedVolumeWriter,
        page: str | Path,
        image_size: Sequence[int],
        spacing: Sequence[float],
        axcodes: str = "RAS",
        centre: Sequence[float] | None = None,
        limits: Sequence[float] | None = None,
        tolerance: float = 0.2,
        blend_length: float | None = None,
        notice: str | None = None,
        device: torch.device | str = "cpu",
        modality: str | None = None,
    ) -> None:
        if limits is not None and (len(limits) != 2 or not limits[0] < limits[1]):
            raise ValueError(f"expected two ascending intensities as limits, got {list(limits)}")
        if centre is not None and not (isinstance(centre, Sequence) and len(centre) == 3):
            raise ValueError(f"expected three numbers as centre (mm in RAS), got {centre!r}")
        if not 0 <= tolerance <= 1:
            raise ValueError(f"expected a tolerance in [0, 1], got {tolerance}")
        if blend_length is not None and not blend_length > 0:
            raise ValueError(f"expected a positive blend_length in mm, or none, got {blend_length}")
        self.editor = editor
        self.writer = writer
        self.page = Path(page)
        self.image_size = [int(n) for n in image_size]
        self.spacing = [float(mm) for mm in spacing]
        self.axcodes = axcodes
        self.centre = centre
        self.limits = limits
        self.tolerance = float(tolerance)
        self.blend_length = blend_length
        self.notice = notice
        self.device = device
        self.modality = modality
        self.remarks: list[str] = []  # of the operation that is running

    @property
    def first_stage(self) -> Any:
        """The generator's first stage."""
        return self.editor.generator.first_stage

    def run(self, operation: str, requests: Mapping[str, Mapping[str, Any]]) -> None:
        """Run one of the operations.

        Args:
            operation: ``inpaint``, ``vary`` or ``interpolate``.
            requests: operation -> its arguments.

        Raises:
            ValueError: another operation.
            OSError: the writer's folder cannot be written.
        """
        check_writable(self.writer.folder)
        if operation not in OPERATIONS:
            raise ValueError(f"operation must be one of {', '.join(OPERATIONS)}; got {operation!r}")
        self.remarks = []
        getattr(self, operation)(**requests[operation])

    def inpaint(self, image: str | Path | None, mask: str | Path | None, seeds: Sequence[int]) -> list[np.ndarray]:
        """Redraw a region, once for each seed; outside it every bit of the scan stays.

        What stands in the region has no effect on the result.

        Args:
            image: NIfTI file of the scan.
            mask: NIfTI file on the same grid; what is not 0 is drawn.
            seeds: of the noise.

        Returns:
            the edited scans, (X, Y, Z) each.

        Raises:
            VolumeError: a scan or a mask that cannot be used, a mask that the model's grid does not cover, or a scan that
                the output format cannot hold.
        """
        scan = read_scan(image)
        region = read_mask(mask, scan)
        self._remark(remarks_on_mask(mask))
        seen = self._seen(scan, ~region)
        if not seen.grid.covers(scan.affine, region):
            raise VolumeError(
                f"{mask}: expected a mask within the {times(seen.grid.shape)} voxels of "
                f"{times(seen.grid.spacing.round(2))} mm that the model sees, around the scan's content: move them "
                "with --centre (mm, RAS), or bring the scan to the model's size with `prepare`"
            )
        around = scan.values[~region]
        self.writer.check(scan, around.min(initial=seen.limits[0]), around.max(initial=seen.limits[1]))
        on_grid = seen.grid.mask(region, scan.affine)
        emptied = filled(seen.volume, on_grid, seen.grid.spacing.tolist())
        free = self._free(seen.volume, emptied, on_grid)
        latent, edits, results = self._encoded(emptied, scan), [], []
        fair = {"masked_voxels": int(region.sum()), "free_positions": int(free.sum()), "positions": free.numel()}
        for seed in seeds:
            drawn = self._drawn(latent, free, seed)
            inside = self._inside(seen, region, drawn)
            steep = seam(_replaced(scan.values, region, inside), region)
            facts = {**fair, "seam": steep._asdict(), "limits": list(seen.limits), **self._settings()}
            result = self.writer.region(scan, region, str(mask), inside, seed, facts)
            results.append(result)
            text = f"seam: {steep.across:.4g} across, {steep.beside:.4g} beside it"
            edits.append(
                Edit(f"seed {seed}", {"before": scan.values, "after": result, "mask": _shown(region, seen)}, text)
            )
        sentences = [
            f"{fair['masked_voxels']:,} of {region.size:,} voxels were redrawn, in {fair['free_positions']} of "
            f"{fair['positions']} positions of the latent; outside them, the greatest difference is "
            f"{max(float(np.abs(result - scan.values)[~region].max()) for result in results):g}."
        ]
        self._write_page("Region redrawn", sentences, edits, seen, scan.affine, fair)
        return results

    def vary(
        self, image: str | Path | None, strengths: Sequence[float], seeds: Sequence[int]
    ) -> list[dict[str, float]]:
        """Variations of a scan, one for each strength and seed, and how far they are from it.

        Args:
            image: NIfTI file of the scan.
            strengths: in [0, 1].
            seeds: of the noise.

        Returns:
            for each volume its strength, its seed, and the distances: mean absolute difference in the model's units of
            [-1, 1] and 1 less MS-SSIM, to the scan.
        """
        _check_any(strengths=strengths, seeds=seeds)
        seen = self._seen(read_scan(image))
        self.writer.check(seen.scan, *seen.limits)
        latent, edits, rows = self._encoded(seen.volume, seen.scan), [], []
        made = [(strength, seed) for strength in strengths for seed in seeds]
        for number, (strength, seed) in enumerate(tqdm(made, desc="varying", unit="volume")):
            volume = self._decoded(self.editor.vary(latent, float(strength), int(seed)))
            row = {"strength": float(strength), "seed": seed, **_distances(volume, seen.volume)}
            facts = {**row, "limits": list(seen.limits)}
            self.writer.whole("vary", [seen.scan], seen.intensities(volume), seen.grid, seed, number, facts)
            rows.append(row)
            text = f"mean absolute difference {row['mean_absolute']:.3f}, 1 - MS-SSIM {row['one_minus_ms_ssim']:.3f}"
            edits.append(Edit(f"strength {strength}, seed {seed}", {"scan": seen.volume, "variation": volume}, text))
        curves = {name: _mean_curve(rows, name) for name in ("mean_absolute", "one_minus_ms_ssim")}
        sentences = [
            f"{len(rows)} variations. At strength 0 a scan is encoded and decoded, at 1 next to nothing of it is left."
        ]
        self._write_page("Variations of a scan", sentences, edits, seen, seen.grid.affine, {"variations": rows}, curves)
        return rows

    def interpolate(
        self,
        image: str | Path | None,
        second_image: str | Path | None,
        weights: Sequence[float],
        strength: float,
        seeds: Sequence[int],
    ) -> list[np.ndarray]:
        """Volumes between two scans, which meet with noise of this strength.

        Args:
            image: NIfTI file of the first scan.
            second_image: of the second.
            weights: of the second, in [0, 1].
            strength: in [0, 1].
            seeds: of the noise.

        Returns:
            (H, W, D) each, in [-1, 1].
        """
        _check_any(second_weights=weights, seeds=seeds)
        if second_image is not None and second_image == image:
            self._remark(["--image and --second_image are one file: what is between them is a variation of it"])
        seen, other = self._seen(read_scan(image)), self._seen(read_scan(second_image, "second_image"))
        self.writer.check(seen.scan, *seen.limits)
        one, two = (self._encoded(each.volume, each.scan) for each in (seen, other))
        edits, results = [], []
        made = [(weight, seed) for weight in weights for seed in seeds]
        for number, (weight, seed) in enumerate(tqdm(made, desc="interpolating", unit="volume")):
            volume = self._decoded(self.editor.between(one, two, float(weight), float(strength), int(seed)))
            facts = {"weight": float(weight), "strength": float(strength), "limits": list(seen.limits)}
            scans = [seen.scan, other.scan]
            self.writer.whole("interpolate", scans, seen.intensities(volume), seen.grid, seed, number, facts)
            shown = {"first scan": seen.volume, "between": volume, "second scan": other.volume}
            edits.append(Edit(f"weight {weight}, seed {seed}", shown))
            results.append(volume)
        sentences = [f"{len(results)} volumes between two scans, which meet with the noise of strength {strength}."]
        self._write_page("Between two scans", sentences, edits, seen, seen.grid.affine, {"strength": strength})
        return results

    # --- what the model sees ---

    def _remark(self, remarks: Sequence[str]) -> None:
        for remark in remarks:
            logger.warning(remark)
        self.remarks += remarks

    def _seen(self, scan: Scan, known: np.ndarray | None = None) -> _Seen:
        self.editor.generator.to(self.device).eval()
        grid = model_grid(scan, self.image_size, self.spacing, self.axcodes, self.centre)
        self._remark(remarks_on_scan(scan, grid, self.spacing, self.modality))
        by_itself = model_grid(scan, self.image_size, self.spacing, self.axcodes)
        if self.centre is not None and np.array_equal(grid.affine, by_itself.affine):
            self._remark([f"--centre changes nothing: --{scan.setting} has the model's size, and is taken as it lies"])
        values = scan.values if known is None else scan.values[known]
        stated = scale_beside(str(scan.path.resolve())).get("intensity_range")
        low, high = (float(value) for value in (self.limits or stated or (values.min(), values.max())))
        if not low < high:
            raise VolumeError(f"{scan.path}: every voxel outside the mask is {low:g}, which tells a model nothing")
        outside = float(((values < low) | (values > high)).mean())
        if outside > 0.5:
            self._remark(
                [f"{outside:.0%} of the voxels of --{scan.setting} are outside the limits [{low:g}, {high:g}]"]
            )
        scaled = np.clip((scan.values - low) / (high - low) * 2 - 1, -1, 1)
        return _Seen(scan, grid, (low, high), grid.volume(scaled, scan.affine, -1.0))

    def _tensor(self, volume: np.ndarray) -> Tensor:
        return torch.from_numpy(volume.astype(np.float32))[None, None].to(self.device)

    @torch.no_grad()
    def _encoded(self, volume: np.ndarray, scan: Scan) -> Tensor:
        """The latent of a scan, with a remark if hardly anything like the scan comes back from it."""
        latent = self.first_stage.encode_stage_2_inputs(self._tensor(volume))
        again = self._decoded(latent)
        apart, alike = float(np.abs(again - volume).mean()), float(np.corrcoef(again.ravel(), volume.ravel())[0, 1])
        if apart > UNLIKE or not alike >= ALIKE:
            self._remark(
                [
                    f"the first stage gives --{scan.setting} back with a mean absolute difference of {apart:.2f} (range 2) "
                    f"and a correlation of {alike:.2f}: it is hardly an image of the kind that the model was trained on, "
                    "or its intensities are inverted or noisy"
                ]
            )
        return latent

    @torch.no_grad()
    def _decoded(self, latent: Tensor) -> np.ndarray:
        return self.first_stage.decode_stage_2_outputs(latent).float()[0, 0].cpu().numpy()

    def _free(self, volume: np.ndarray, emptied: np.ndarray, region: np.ndarray) -> Tensor:
        """Positions of the latent, (h, w, d) bool, that depend on what is in a region of the model's grid.

        Found with three contents: a smooth continuation of what surrounds it, black, and the mean of the rest.
        """
        black, grey = np.where(region, -1.0, volume), np.where(region, volume[~region].mean(), volume)
        contents = [self._tensor(content) for content in (emptied, black, grey)]
        return free_positions(self.first_stage, contents, torch.from_numpy(region), self.tolerance)

    def _drawn(self, latent: Tensor, free: Tensor, seed: int) -> np.ndarray:
        steps = len(self.editor.generator.timesteps)
        moves = len(list(jump_schedule(steps, self.editor.jump_length, self.editor.resamples)))
        with tqdm(total=moves, desc=f"drawing, seed {seed}", unit="step") as bar:
            return self._decoded(self.editor.inpaint(latent, free, int(seed), bar.update))

    def _inside(self, seen: _Seen, region: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """What goes into the region of the scan, (N,)."""
        around = ring(region)
        generated = np.zeros_like(seen.scan.values)
        generated[around] = seen.grid.back(seen.intensities(drawn), seen.scan.affine, around)
        spacing = seen.scan.spacing.tolist()
        length = float(seen.grid.spacing.mean()) if self.blend_length is None else float(self.blend_length)
        inside = blended(seen.scan.values, generated, region, spacing, length)
        return inside.clip(*seen.limits)

    # --- what is written about it ---

    def _settings(self) -> dict[str, Any]:
        return {
            "resamples": self.editor.resamples,
            "jump_length": self.editor.jump_length,
            "tolerance": self.tolerance,
            "blend_length": self.blend_length,
        }

    def _write_page(
        self,
        title: str,
        sentences: Sequence[str],
        edits: Sequence[Edit],
        seen: _Seen,
        affine: np.ndarray,
        facts: dict[str, Any],
        curves: dict[str, tuple[list[float], list[float]]] | None = None,
    ) -> None:
        window = (-1.0, 1.0) if affine is seen.grid.affine else seen.limits
        made = {**self.writer.facts, **facts}
        sentences = [*sentences, *(f"Remark: {remark}." for remark in self.remarks)]
        write_edit_page(self.page, title, sentences, edits, window, affine, made, curves, self.notice)
        print(f"wrote {self.writer.folder}\npage: {self.page}", flush=True)


def _check_any(**given: Sequence[Any]) -> None:
    for name, values in given.items():
        if len(values) == 0:
            raise ValueError(f"expected at least one of {name}, got none")
        if len({float(value) for value in values}) < len(values):
            raise ValueError(f"expected {name} that differ, or one volume would be drawn twice, got {list(values)}")


def _replaced(values: np.ndarray, region: np.ndarray, inside: np.ndarray) -> np.ndarray:
    result = values.copy()
    result[region] = inside
    return result


def _shown(region: np.ndarray, seen: _Seen) -> np.ndarray:
    return np.where(region, seen.limits[1], seen.limits[0])


@torch.no_grad()
def _distances(volume: np.ndarray, scan: np.ndarray) -> dict[str, float]:
    one, other = (torch.from_numpy(array.astype(np.float32))[None, None] for array in (volume, scan))
    return {"mean_absolute": float((one - other).abs().mean()), "one_minus_ms_ssim": float(MSSSIMLoss()(one, other))}


def _mean_curve(rows: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Strengths in ascending order and the mean of a distance over the seeds."""
    strengths = sorted({row["strength"] for row in rows})
    return strengths, [float(np.mean([row[name] for row in rows if row["strength"] == s])) for s in strengths]
