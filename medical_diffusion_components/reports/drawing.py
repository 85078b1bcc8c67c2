"""Pictures of volumes: the three middle slices of each, with true proportions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.orientation import to_ras, world_axes

__all__ = ["montage", "save_montage"]

_PLANES = (("sagittal", 0), ("coronal", 1), ("axial", 2))
_PLANE_NAME: dict[str, Any] = {"color": "0.6", "fontsize": 7, "rotation": 90, "va": "center", "ha": "right"}


def montage(
    groups: Mapping[str, Sequence[np.ndarray]],
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: tuple[float, float] = (-1.0, 1.0),
    title: str = "",
    axcodes: str = "RAS",
    overlays: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Figure:
    """Draw groups of volumes, a column per volume and a row per plane, in the same orientation whatever their axes.

    Args:
        groups: heading -> volumes (H, W, D), drawn side by side.
        spacing: mm per voxel along H, W, D.
        window: intensities shown as black and white.
        title: text above all.
        axcodes: where H, W and D point in the patient; ``"RAS"`` is right, anterior, superior.
        overlays: heading of a group -> label maps (H, W, D) to draw over its volumes, each value above 0 in a colour.

    Raises:
        ValueError: no volume at all, or invalid ``axcodes``.
    """
    overlays, _ = _on_ras_axes(overlays or {}, spacing, axcodes)
    groups, spacing = _on_ras_axes(groups, spacing, axcodes)
    columns = max((len(volumes) for volumes in groups.values()), default=0)
    if columns == 0:
        raise ValueError("a montage needs at least one volume")
    extent = np.array(next(v for g in groups.values() for v in g).shape) * np.array(spacing)
    heights = [extent[[a for a in range(3) if a != axis][1]] / extent.max() for _, axis in _PLANES]
    width = 1.35 * columns + 0.9
    figure = Figure(
        figsize=(max(width, 4.0), (1.35 * sum(heights) + 0.35) * len(groups) + 0.45),
        facecolor="black",
        dpi=110,
    )
    FigureCanvasAgg(figure)
    outer = figure.add_gridspec(
        len(groups),
        1,
        left=0.9 / width,
        right=0.995,
        top=1 - 0.5 / figure.get_figheight(),
        bottom=0.005,
        hspace=0.08,
    )
    if title:
        figure.suptitle(title, color="white", fontsize=10)
    for number, (heading, volumes) in enumerate(groups.items()):
        inner = outer[number, 0].subgridspec(3, columns, height_ratios=heights, hspace=0.03, wspace=0.03)
        for row, (plane, axis) in enumerate(_PLANES):
            for column in range(columns):
                axes = figure.add_subplot(inner[row, column])
                axes.set_axis_off()
                if column < len(volumes):
                    _draw(axes, volumes[column], axis, spacing, window)
                    if column < len(overlays.get(heading, ())):
                        _draw_labels(axes, overlays[heading][column], axis)
                if column == 0:
                    axes.text(-0.06, 0.5, plane, transform=axes.transAxes, **_PLANE_NAME)
                if row == 0 and column == 0:
                    axes.set_title(heading, color="white", fontsize=9, loc="left", pad=3)
    return figure


def _on_ras_axes(
    groups: Mapping[str, Sequence[np.ndarray]], spacing: Sequence[float], axcodes: str
) -> tuple[dict[str, list[np.ndarray]], list[float]]:
    turned = {heading: [to_ras(np.asarray(volume), axcodes) for volume in group] for heading, group in groups.items()}
    ras_spacing = [0.0, 0.0, 0.0]
    for (axis, _), length in zip(world_axes(axcodes), spacing):
        ras_spacing[axis] = length
    return turned, ras_spacing


def _draw(axes: Axes, volume: np.ndarray, axis: int, spacing: Sequence[float], window: tuple[float, float]) -> None:
    picture = np.take(np.asarray(volume, dtype=np.float32), volume.shape[axis] // 2, axis=axis)
    across, up = (s for a, s in enumerate(spacing) if a != axis)
    axes.imshow(
        picture.T,
        origin="lower",
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        aspect=up / across,
        interpolation="bilinear",
    )


def _draw_labels(axes: Axes, labels: np.ndarray, axis: int) -> None:
    """On top of the slice that is there, whose aspect stays."""
    picture = np.take(labels, labels.shape[axis] // 2, axis=axis).T.astype(int)
    colours = np.zeros((*picture.shape, 4))
    inside = picture > 0
    colours[inside] = colormaps["Set1"]((picture[inside] - 1) % 9, alpha=0.55)
    axes.imshow(colours, origin="lower", aspect=axes.get_aspect(), interpolation="nearest")


def save_montage(figure: Figure, path: str | os.PathLike) -> None:
    """Write the figure as PNG, whole or not at all."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, facecolor="black"))
