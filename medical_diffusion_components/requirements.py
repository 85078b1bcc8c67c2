"""Which packages are missing, said all at once and with the command that installs them.

Where pip has installed this package, nothing is missing. Where it is only on the path, as beside a bundle in an annotation
server, imports would fail one after the other: MONAI imports what a configuration lists only once it is used. A
training that such a server may start therefore calls :func:`check_packages` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

__all__ = ["SEGMENTATION_TRAINING", "check_packages"]

# what training a segmentation needs beside torch and MONAI: what pip is to install, as setup.cfg has it -> what is imported
SEGMENTATION_TRAINING = {
    "pytorch-ignite>=0.5,<0.6": "ignite",
    "einops>=0.7,<0.9": "einops",
    "numpy>=1.26,<3": "numpy",
    "scipy>=1.11,<2": "scipy",
    "nibabel>=5,<6": "nibabel",
    "filelock>=4.2,<5": "filelock",
    "tensorboard>=2.14,<3": "tensorboard",
    "tqdm>=4.65,<5": "tqdm",
    "matplotlib>=3.8,<4": "matplotlib",
    "torchio>=1,<2": "torchio",
}


def check_packages(wanted: Mapping[str, str]) -> None:
    """Look for packages without importing them.

    Args:
        wanted: what pip is to install -> what is imported of it.

    Raises:
        ModuleNotFoundError: some are missing; the message names all of them.
    """
    missing = [requirement for requirement, module in wanted.items() if find_spec(module) is None]
    if missing:
        command = " ".join(f'"{requirement}"' for requirement in missing)
        several = f"{len(missing)} packages are missing: install them"
        said = "1 package is missing: install it" if len(missing) == 1 else several
        raise ModuleNotFoundError(f"{said} with pip install {command}")
