"""Compressed DICOM slices decoded by ITK, in a process of its own.

The codecs inside ITK can crash on a damaged stream, and take the process with them. Apart, a crash is an error like
any other. Run as a module with a folder as its argument, this file decodes the folder's ``*.dcm`` into ``*.npy``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

__all__ = ["decode_apart", "has_itk"]

_START_S = 120.0  # importing ITK takes seconds, on a busy machine and a cold disk more
_SLICE_S = 10.0


def has_itk() -> bool:
    """Whether ITK is installed."""
    return importlib.util.find_spec("itk") is not None


def decode_apart(folder: Path) -> None:
    """Decode all ``*.dcm`` of a folder into ``*.npy`` of int32.

    Raises:
        ValueError: a file cannot be decoded, or decoding it crashes or does not end.
    """
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    limit = _START_S + _SLICE_S * len(list(folder.glob("*.dcm")))
    command = [sys.executable, "-m", __name__, str(folder)]
    try:
        subprocess.run(command, env=environment, capture_output=True, timeout=limit, check=True)
    except subprocess.SubprocessError as error:
        raise ValueError("compressed pixels cannot be decoded") from error


def _decode_folder(folder: Path) -> None:
    import itk

    for path in sorted(folder.glob("*.dcm")):
        image = itk.imread(str(path), itk.F, imageio=itk.GDCMImageIO.New())  # float32: exact up to 24 bits
        pixels = itk.array_from_image(image).astype(np.int32)
        np.save(path.with_suffix(".npy"), pixels.reshape(pixels.shape[-2:]))


if __name__ == "__main__":
    _decode_folder(Path(sys.argv[1]))
