"""The test of one volume: encoder, training volumes as points, and the held-out patients that it is calibrated with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medical_diffusion_components.audit.conformal import conformal_p
from medical_diffusion_components.audit.encoder import ContrastiveEncoder, embed
from medical_diffusion_components.audit.similarity import Nearest, TrainingBank
from medical_diffusion_components.files import write_atomically
from medical_diffusion_components.weights import WeightsError, load_tensors, save_tensors

__all__ = ["NOT_ANONYMOUS", "PROTOCOL", "VERDICTS", "CopyTest", "Verdict", "are_copies"]

PROTOCOL = "copy-audit-v4"  # any change of a constant or a definition counts it up
NOT_ANONYMOUS = 'No copy found by this test is not the same as "anonymous".'
VERDICTS = ("copy", "withheld", "released")
FAR_NEARER = 1 / 3  # distance to the nearest patient over that to the second nearest, below which only copies lie


class Verdict(NamedTuple):
    """What the test says about one volume."""

    verdict: str  # one of VERDICTS
    similarity: float  # cosine with the nearest training volume
    p: float  # conformal, against held-out volumes that went through the first stage
    p_raw: float  # the same against the held-out volumes as they are; not used for the verdict
    distance_ratio: float  # distance to the nearest training patient over that to the second nearest
    source: int  # which training volume is the nearest
    source_id: str  # its name in reports, see training_ids.py

    def note(self) -> dict[str, Any]:
        """What stands in the volume's JSON: no name of a case or patient."""
        return {
            "verdict": self.verdict,
            "similarity": round(self.similarity, 5),
            "p": round(self.p, 5),
            "p_raw": round(self.p_raw, 5),
            "distance_ratio": round(self.distance_ratio, 5),
            "nearest_training_volume": self.source_id,
            "note": NOT_ANONYMOUS,
        }


def are_copies(nearest: Nearest, calibration: np.ndarray) -> np.ndarray:
    """Of n volumes, whether the verdict is ``copy``: (n,), see :class:`CopyTest`."""
    return (nearest.similarity > calibration.max()) & (nearest.ratio < FAR_NEARER)


class CopyTest(NamedTuple):
    """Decide whether a volume is a copy of a training volume, is withheld, or released.

    * ``copy``: more similar to a training volume than every held-out patient is, *and* at less than a third of the
      distance at which the next patient lies.
    * ``withheld``: p <= alpha, so an innocent volume is withheld with probability alpha at most.
    * ``released``: the rest.
    """

    encoder: ContrastiveEncoder
    bank: TrainingBank
    sources: list[str]  # names of the training volumes, see training_ids.py
    calibration: np.ndarray  # similarities of held-out patients' volumes, through the first stage
    calibration_raw: np.ndarray  # the same, as they are
    alpha: float
    facts: dict[str, Any]  # encoder's key, the generator's weights, size of the reduced volumes

    def verdicts(self, reduced: Tensor) -> list[Verdict]:
        """Judge reduced volumes, (n, C, h, w, d) in [-1, 1].

        Raises:
            ValueError: volumes of another size than the training volumes.
        """
        if list(reduced.shape[1:]) != self.facts["shape"]:
            raise ValueError(
                f"expected volumes of {self.facts['shape']} after reduction, as the training volumes are, got "
                f"{list(reduced.shape[1:])}"
            )
        nearest = self.bank.nearest(embed(self.encoder, reduced))
        p = conformal_p(nearest.similarity, self.calibration)
        p_raw = conformal_p(nearest.similarity, self.calibration_raw)
        found = []
        for similarity, source, ratio, one, raw, copy in zip(*nearest, p, p_raw, are_copies(nearest, self.calibration)):
            word = "copy" if copy else "withheld" if one <= self.alpha + 1e-12 else "released"
            numbers = (float(similarity), float(one), float(raw), float(ratio))
            found.append(Verdict(word, *numbers, int(source), self.sources[source]))
        return found

    def save(self, path: str | Path) -> None:
        """Write all that is needed to judge further volumes; tensors and plain values only.

        The file holds training volumes as points, so it is as confidential as they are.
        """
        content = {
            "protocol": PROTOCOL,
            "encoder": {name: tensor.cpu() for name, tensor in self.encoder.state_dict().items()},
            "points": self.bank.points,
            "groups": self.bank.groups,
            "sources": self.sources,
            "calibration": torch.from_numpy(self.calibration),
            "calibration_raw": torch.from_numpy(self.calibration_raw),
            "alpha": self.alpha,
            "facts": self.facts,
        }
        write_atomically(path, lambda temporary: save_tensors(content, temporary))

    @classmethod
    def load(cls, path: str | Path, weights_sha256: str) -> CopyTest:
        """Read what :meth:`save` wrote.

        Args:
            path: of the file.
            weights_sha256: of the generator whose volumes are to be judged.

        Raises:
            WeightsError: there is no such file, it is damaged, or of another protocol, or it belongs to another generator.
        """
        if not Path(path).is_file():
            raise WeightsError(f"expected the copy test at {path}, but there is no such file: run audit.yaml first")
        try:
            content = load_tensors(path)
            encoder = ContrastiveEncoder(tuple(content["facts"]["shape"]), content["points"].shape[-1])
            encoder.load_state_dict(content["encoder"])
            protocol = content.get("protocol", "an earlier protocol")
        except Exception as error:
            raise WeightsError(
                f"{path} cannot be read as a copy test ({type(error).__name__}): run audit.yaml again"
            ) from error
        if protocol != PROTOCOL:
            raise WeightsError(f"{path} is of {protocol}, expected {PROTOCOL}: run audit.yaml again")
        if content["facts"]["weights_sha256"] != weights_sha256:
            raise WeightsError(
                f"the copy test {path} is calibrated for the generator {content['facts']['weights_sha256'][:16]}..., but "
                f"these weights are {weights_sha256[:16]}...: run audit.yaml again"
            )
        return cls(
            encoder.eval(),
            TrainingBank(content["points"], content["groups"]),
            content["sources"],
            content["calibration"].numpy(),
            content["calibration_raw"].numpy(),
            content["alpha"],
            content["facts"],
        )
