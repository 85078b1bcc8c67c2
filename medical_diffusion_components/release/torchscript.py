"""A network with its weights as one file that ``torch.jit.load`` runs with nothing else installed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["scripted"]


def scripted(network: nn.Module, extra_files: Mapping[str, str] | None = None) -> bytes:
    """``network`` as TorchScript; the bytes follow from it and ``extra_files`` alone.

    torch writes beside the code where each line of it came from, paths of this machine included. It is left out: what
    fails in the loaded network names its own code then.

    Args:
        network: what ``torch.jit.script`` accepts; on the CPU and in evaluation mode.
        extra_files: name -> text, to be stored with it, as MONAI stores metadata.
    """
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(network.eval()), buffer, _extra_files=dict(extra_files or {}))
    return _without_places(buffer.getvalue())


def _without_places(archive: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for record in sorted(source.namelist()):
            if not record.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(record), source.read(record))
    return buffer.getvalue()
