"""Named segments of 3D Slicer's ``.seg.nrrd`` files as one label map on an image's grid.

Which value and layer a segment has differs from file to file; the header says it
(:mod:`medical_diffusion_components.preparation.segments`).
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch, Transform
from monai.transforms.utils import TransformBackends
from monai.utils import ImageMetaKey

from medical_diffusion_components.preparation.segments import SegmentTable, read_segments
from medical_diffusion_components.transforms.volume_error import NamesItsFailure, VolumeError

__all__ = ["LoadSegments", "LoadSegmentsd", "segment_paths"]

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class LoadSegments(Transform):
    """Read segments onto an image's grid by their places in the world, nearest voxel.

    Args:
        segments: name of a segment -> value in the label map, from 1. Where segments overlap, the one named later counts.

    Shape:
        files, (1, H, W, D) -> (1, H, W, D), a ``MetaTensor`` of whole numbers; 0 where there is no segment

    Raises:
        ValueError: no segments, or values that are not 1, 2, 3, ... (several segments may share one).
        VolumeError: a file is damaged, none or two of the files have a segment of that name, or a segment has no voxel
            inside the image.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, segments: Mapping[str, int]) -> None:
        self.segments = dict(segments)
        if not self.segments or set(self.segments.values()) != set(range(1, max(self.segments.values()) + 1)):
            raise ValueError(f"segments must have the values 1, 2, 3, ... without gaps, got {self.segments}")
        self.match = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=np.float32)

    def __call__(self, filenames: Sequence[str | os.PathLike], grid: MetaTensor) -> MetaTensor:  # type: ignore[override]  # two inputs
        """Read the segments from ``filenames`` onto the grid of ``grid``."""
        found: dict[str, MetaTensor] = {}
        for filename in filenames:
            for name, mask in self._read(os.fspath(filename)).items():
                if name in found:
                    raise VolumeError(f"{filename}: the segment {name!r} is in another file of the case, too")
                found[name] = mask
        missing = [name for name in self.segments if name not in found]
        if missing:
            there = sorted({s.name for filename in filenames for s in _table(os.fspath(filename)).segments})
            raise VolumeError(f"{filenames[0]}: expected a segment {missing[0]!r}, the files of the case have {there}")
        label = torch.zeros_like(grid)
        assert isinstance(label, MetaTensor)
        for name, value in self.segments.items():
            inside = self.match(found[name], grid) > 0.5
            if not bool(inside.any()):
                raise VolumeError(f"{filenames[0]}: the segment {name!r} has no voxel inside the image")
            label[inside] = value
        return label

    def _read(self, path: str) -> dict[str, MetaTensor]:
        wanted = [segment for segment in _table(path).segments if segment.name in self.segments]
        if not wanted:
            return {}
        layers, affine = _layers(path)
        meta = {ImageMetaKey.FILENAME_OR_OBJ: path}
        return {
            segment.name: MetaTensor(
                torch.from_numpy((layers[segment.layer] == segment.value).astype(np.float32)[None]),
                affine=torch.from_numpy(affine),
                meta=meta,
            )
            for segment in wanted
        }


class LoadSegmentsd(NamesItsFailure, MapTransform):
    """Dictionary form of :class:`LoadSegments`: entries with file names become one label map.

    Args:
        keys: entries with the files; gone afterwards.
        grid_key: the image on whose grid the label map is wanted.
        label_key: where it goes.
        segments: see :class:`LoadSegments`.
        allow_missing_keys: skip keys that are not there.
    """

    backend = LoadSegments.backend

    def __init__(
        self,
        keys: KeysCollection,
        grid_key: str,
        label_key: str,
        segments: Mapping[str, int],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.grid_key = grid_key
        self.label_key = label_key
        self.load = LoadSegments(segments)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        with self.remembering_failure():
            absent = [key for key in self.keys if key not in data]
            if absent and not self.allow_missing_keys:
                raise VolumeError(
                    f"{data.get('case_id', 'a case')}: expected a file of segments as {absent[0]!r}, found none"
                )
            files = [data.pop(key) for key in self.key_iterator(dict(data))]
            data[self.label_key] = self.load(files, data[self.grid_key])
        return data


def segment_paths(masks_dir: str | os.PathLike | None, files: Mapping[str, str]) -> dict[str, str]:
    """Paths of files below ``masks_dir``, which may hold ``{case_id}``, by key.

    Raises:
        ValueError: no folder was given.
        NotADirectoryError: there is no such folder.
    """
    if masks_dir is None:
        raise ValueError("prepare needs --masks_dir, the folder that holds the segmentation files")
    folder = Path(masks_dir).expanduser().resolve()
    if not folder.is_dir():
        raise NotADirectoryError(f"masks_dir must be a folder, but {folder} does not exist or is no folder")
    return {key: str(folder / file) for key, file in files.items()}


def _table(path: str) -> SegmentTable:
    try:
        return read_segments(path)
    except (OSError, ValueError) as error:
        raise VolumeError(f"{path}: {error}") from error


def _layers(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (layers, x, y, z) and their affine, voxels to mm in RAS."""
    try:
        import itk
    except ImportError as error:
        raise ImportError(
            "NRRD files need itk: pip install itk (the extra [prepare] of this package has it)"
        ) from error
    try:
        reader = itk.ImageFileReader[itk.VectorImage[itk.F, 3]].New(
            FileName=path, ImageIO=itk.NrrdImageIO.New(FileName=path)
        )
        reader.Update()
        image = reader.GetOutput()
        voxels = np.array(itk.array_from_image(image))  # (z, y, x, layers), or (z, y, x) of one layer
        direction = np.asarray(itk.array_from_matrix(image.GetDirection()))
        spacing, origin = np.asarray(image.GetSpacing()), np.asarray(image.GetOrigin())
    except Exception as error:  # ITK's messages run over many lines
        what = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise VolumeError(f"{path}: cannot be read as a NRRD volume: {what}") from error
    voxels = voxels[..., None] if voxels.ndim == 3 else voxels
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction * spacing, origin
    return np.ascontiguousarray(voxels.transpose(3, 2, 1, 0)), _TO_RAS @ affine
