"""Hands a volume to a program of the user's choice and takes back what it made, such as a brain without skull."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.transforms.utils import TransformBackends
from monai.utils import MetaKeys

from medical_diffusion_components.transforms.each_volume import EachVolumed
from medical_diffusion_components.transforms.load_volume import LoadVolume
from medical_diffusion_components.transforms.volume_error import VolumeError, file_name

__all__ = ["RunCommand", "RunCommandd"]


class RunCommand(Transform):
    """Write the volume to a temporary NIfTI file, run the command, read the NIfTI file that it wrote.

    Args:
        command: the program and its arguments, with ``{input}`` and ``{output}`` where the two file names belong, such
            as ``"hd-bet -i {input} -o {output}"``. It is split at blanks as a shell would, but no shell runs it.
        timeout: seconds, after which the program is ended.

    Shape:
        (1, H, W, D) -> (1, H, W, D) on the same grid

    Raises:
        VolumeError: the program is not there, fails, takes too long, writes nothing, or changes the grid.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(self, command: str, timeout: float = 1800.0) -> None:
        self.arguments = shlex.split(command)
        if not all(any(place in part for part in self.arguments) for place in ("{input}", "{output}")):
            raise ValueError(f"the command needs {{input}} and {{output}} for the file names, got {command!r}")
        self.timeout = float(timeout)

    def __call__(self, img: MetaTensor) -> MetaTensor:
        name = file_name(img)
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder) / "input.nii.gz", Path(folder) / "output.nii.gz"
            nib.save(nib.Nifti1Image(np.asarray(img.as_tensor()[0]), np.asarray(img.affine)), given)
            # plain replacement: a brace elsewhere in the command is the program's own
            arguments = [p.replace("{input}", str(given)).replace("{output}", str(made)) for p in self.arguments]
            self._run(arguments, name)
            if not made.is_file():
                raise VolumeError(f"{name}: {self.arguments[0]} ended well, but wrote no {{output}}")
            result = LoadVolume()(made)
        wanted = LoadVolume().orient(img)
        assert isinstance(wanted, MetaTensor)
        if result.shape != wanted.shape or not np.allclose(result.affine, wanted.affine, atol=1e-2):
            raise VolumeError(
                f"{name}: expected {self.arguments[0]} to keep the grid of {tuple(wanted.shape[1:])} voxels and its "
                f"place, got {tuple(result.shape[1:])} voxels, affine {result.affine.tolist()}"
            )
        codes = "".join(nib.aff2axcodes(np.asarray(img.affine)))
        back = type(LoadVolume().orient)(axcodes=codes, labels=None)(result)
        assert isinstance(back, MetaTensor)
        meta = {key: value for key, value in img.meta.items() if key != MetaKeys.AFFINE}
        return MetaTensor(back.as_tensor(), affine=img.affine, meta=meta)

    def _run(self, arguments: list[str], name: str) -> None:
        try:
            done = subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise VolumeError(f"{name}: {arguments[0]} took longer than {self.timeout:g} s") from error
        except OSError as error:
            raise VolumeError(f"{name}: {arguments[0]} cannot be run: {error.strerror}") from error
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-300:]
            raise VolumeError(f"{name}: {arguments[0]} failed with status {done.returncode}: {said}")


class RunCommandd(EachVolumed):
    """Dictionary form of :class:`RunCommand`."""

    backend = RunCommand.backend
    array_form = RunCommand
