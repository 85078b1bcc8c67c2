"""NIfTI files of ``SaveImage`` that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.data import NibabelWriter

from medical_diffusion_components.files import write_atomically

__all__ = ["WholeFileWriter"]


class WholeFileWriter(NibabelWriter):
    """For ``SaveImage``'s ``writer``: a process that is killed, or a full disk, leaves what was there before."""

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the volume that was set.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """

        def write(temporary: Path) -> None:
            NibabelWriter.write(self, temporary, verbose=verbose, **kwargs)

        write_atomically(Path(filename), write)
