"""Are these numbers Hounsfield units? Air is near -1000 and soft tissue near 0, or they are something else."""

from __future__ import annotations

import torch
from monai.transforms import Transform
from monai.transforms.utils import TransformBackends

from medical_diffusion_components.transforms.each_volume import EachVolumed
from medical_diffusion_components.transforms.volume_error import VolumeError, file_name

__all__ = ["CheckHounsfield", "CheckHounsfieldd"]

_AIR = (-1150.0, -800.0)  # air, and lung that is mostly air
_TISSUE = (-300.0, 300.0)  # fat to contrast-filled vessels
_MIN_AIR = 0.005  # of the voxels that were measured
_MIN_TISSUE = 0.01  # of those that are not air
_EVERY = 3  # voxel along each axis is looked at


class CheckHounsfield(Transform):
    """Return a CT as it came, or raise if it has no air near -1000 or no soft tissue near 0.

    Such are stored values without slope and intercept, 8-bit pictures of a window, and volumes scaled to [0, 1]. What lies
    below the range of air is padding and does not count.

    Shape:
        (1, H, W, D) -> (1, H, W, D)

    Raises:
        VolumeError: the intensities are not Hounsfield units.
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        voxels = torch.as_tensor(img)[:, ::_EVERY, ::_EVERY, ::_EVERY]
        measured = voxels[voxels >= _AIR[0]]
        air = int((measured <= _AIR[1]).sum())
        rest = measured.numel() - air
        tissue = int(((measured >= _TISSUE[0]) & (measured <= _TISSUE[1])).sum())
        if air < _MIN_AIR * max(measured.numel(), 1) or tissue < _MIN_TISSUE * max(rest, 1):
            raise VolumeError(
                f"{file_name(img)}: expected Hounsfield units, with air near -1000 and soft tissue near 0; got intensities "
                f"from {float(voxels.min()):g} to {float(voxels.max()):g}, {air / max(measured.numel(), 1):.1%} of them in "
                f"[{_AIR[0]:g}, {_AIR[1]:g}] and {tissue / max(rest, 1):.1%} of the others in [{_TISSUE[0]:g}, "
                f"{_TISSUE[1]:g}]: were slope and intercept lost? (--check_hounsfield False believes it)"
            )
        return img


class CheckHounsfieldd(EachVolumed):
    """Dictionary form of :class:`CheckHounsfield`."""

    backend = CheckHounsfield.backend
    array_form = CheckHounsfield
