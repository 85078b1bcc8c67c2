"""The whole audit of a generator and of its volumes, from files to numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from medical_diffusion_components.audit import refusals
from medical_diffusion_components.audit.conformal import FlaggedShare, clopper_pearson, flagged_share
from medical_diffusion_components.audit.copy_test import CopyTest, Verdict
from medical_diffusion_components.audit.encoder import ContrastiveTraining, embed, trained_encoder
from medical_diffusion_components.audit.membership import Membership, membership
from medical_diffusion_components.audit.proximity import (
    HoldoutShare,
    PublishedRule,
    data_copying_z,
    holdout_share,
    published_rule,
)
from medical_diffusion_components.audit.similarity import TrainingBank, merge_groups, similar_pairs
from medical_diffusion_components.audit.strata import Strata, by_stratum
from medical_diffusion_components.audit.training_ids import training_ids
from medical_diffusion_components.audit.views import RandomViews
from medical_diffusion_components.audit.volumes import (
    AuditedVolumes,
    Preprocessing,
    one_case_per_patient,
    read_volumes,
)
from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.data.conditions import Conditions
from medical_diffusion_components.diffusion import LatentDiffusionGenerator
from medical_diffusion_components.files import check_writable, file_hash

__all__ = ["AuditResult", "CopyAudit", "Memorised", "PreparedAudit"]

logger = logging.getLogger(__name__)

FILTER_FILE = "copy_test.pt"


class Memorised(NamedTuple):
    """Training volumes that the copies among the synthetic volumes come from."""

    count: int  # type: ignore[assignment]  # a tuple's method of that name gives way
    share: float  # of the training volumes
    interval: tuple[float, float]  # 95 %, Clopper-Pearson
    sources: list[str]  # their names, the most copied first


class PreparedAudit(NamedTuple):
    """What an audit needs to know before it sees a synthetic volume."""

    test: CopyTest
    duplicates: list[tuple[str, str, float]]  # name, name, similarity
    held_out_raw: np.ndarray  # similarities (M, N) of held-out with training volumes
    held_out_through: np.ndarray  # the same through the first stage
    held_out_bank: TrainingBank  # the held-out volumes as points


class AuditResult(NamedTuple):
    """What an audit found."""

    samples: list[dict]  # cases: image (path), case_id
    verdicts: list[Verdict]
    flagged: FlaggedShare
    memorised: Memorised
    holdout_share: HoldoutShare
    data_copying: float  # C_T
    membership: Membership
    published: PublishedRule
    duplicates: list[tuple[str, str, float]]
    sources: list[dict]  # the training cases, for pictures; never written down
    facts: dict[str, Any]
    strata: Strata | None  # None: the generator has no conditions


class CopyAudit:
    """Audit a generator: are its volumes copies of training volumes?

    Args:
        training: cases that the generator was trained on, all of them.
        held_out: cases of other patients that neither generator nor encoder have seen; one per patient is used.
        preprocessing: turns files into volumes, the same way for all sets.
        generator: with its weights loaded.
        weights: the file that they came from.
        data: what ``describe_data`` says of the training volumes, to be held against the note beside the weights.
        folder: what is worth keeping goes there: the encoder, reduced volumes, held-out volumes through the first stage,
            losses, ``copy_test.pt`` for inference, and which training volume is which, in ``at_home``.
        reconstruct: sends cases through the generator's first stage and returns those of the written files, which lie
            on disk as the generator's volumes do.
        axcodes: where H, W and D point.
        flip_axis: spatial axis that the generator's training mirrors; None for none.
        alpha: share of innocent volumes that may be withheld.
        encoder_training: of the contrastive encoder.
        num_membership_volumes: at most so many training volumes are used for the membership test.
        conditions: those that the generator was trained with, for the membership test and the strata.
        strata: of the training patients, as the note beside the weights has them.
        device: where to compute.
        seed: of what is drawn.

    Raises:
        AuditError: when called, weights that were trained on other volumes, too few held-out patients, an overlap of
            patients or files, or sets that were not prepared in the same way.
    """

    def __init__(
        self,
        training: Sequence[dict],
        held_out: Sequence[dict],
        preprocessing: Preprocessing,
        generator: LatentDiffusionGenerator,
        weights: str | Path,
        data: Mapping[str, Any],
        folder: str | Path,
        reconstruct: Callable[[Sequence[dict]], list[dict]],
        axcodes: str = "RAS",
        flip_axis: int | None = 0,
        alpha: float = 0.05,
        encoder_training: ContrastiveTraining | None = None,
        num_membership_volumes: int = 200,
        conditions: Conditions | None = None,
        strata: Sequence[Mapping[str, Any]] = (),
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.training = list(training)
        self.held_out = one_case_per_patient(held_out)
        self.preprocessing = preprocessing
        self.generator = generator
        self.weights = Path(weights)
        self.data = dict(data)
        self.folder = Path(folder)
        self.reconstruct = reconstruct
        self.axcodes = axcodes
        self.flip_axis = flip_axis
        self.alpha = alpha
        self.encoder_training = encoder_training
        self.num_membership_volumes = num_membership_volumes
        self.conditions = conditions
        self.strata = list(strata)
        self.device = device
        self.seed = seed

    def _prepare(self, known: bool, training: AuditedVolumes) -> PreparedAudit:
        """All that does not depend on the synthetic volumes: encoder, duplicates, calibration; kept in the folder."""
        held_out = self._read(self.held_out, "held-out volumes")
        refusals.check_disjoint(training, held_out)
        refusals.check_preprocessed_alike(training, held_out)
        weights_sha256 = file_hash(self.weights)
        # a generator that remembers gives back what its first stage makes of a training volume
        memorisable = self._read(self.reconstruct(self.training), "training volumes through the first stage")
        through = self._read(self.reconstruct(self.held_out), "held-out volumes through the first stage")
        encoder, key = trained_encoder(
            training.reduced,
            {"volumes": training.hashes, "through": memorisable.hashes, "preprocessing": self.preprocessing.text},
            self.folder / "cache",
            RandomViews(self.flip_axis),
            self.encoder_training,
            self.device,
            memorisable.reduced,
        )
        bank = TrainingBank(self._points(encoder, training, memorisable), training.groups)
        held_out_bank = TrainingBank(self._points(encoder, held_out, through), held_out.groups)
        raw, reconstructed = (
            bank.similarities(embed(encoder, some.reduced)).double().numpy() for some in (held_out, through)
        )
        pairs = similar_pairs(bank, float(raw.max()))
        if pairs:
            logger.warning(f"{len(pairs)} pair(s) of training volumes of different patients look like duplicates")
        ids = training_ids(training, self.folder)
        test = CopyTest(
            encoder=encoder,
            bank=bank._replace(groups=merge_groups(bank.groups, pairs)),
            sources=ids,
            calibration=reconstructed.max(axis=1),
            calibration_raw=raw.max(axis=1),
            alpha=self.alpha,
            facts={
                "encoder": key,
                "weights_sha256": weights_sha256,
                "shape": list(training.reduced.shape[1:]),
                "trained_on_these": known,
            },
        )
        test.save(self.folder / FILTER_FILE)
        return PreparedAudit(
            test=test,
            duplicates=[(ids[one], ids[other], found) for one, other, found in pairs],
            held_out_raw=raw,
            held_out_through=reconstructed,
            held_out_bank=held_out_bank,
        )

    def __call__(self, samples: Sequence[dict]) -> AuditResult:
        """Audit synthetic volumes.

        Args:
            samples: cases: ``image`` (path), ``case_id`` (how the report names it).
        """
        samples = list(samples)
        check_writable(self.folder)
        for folder in {Path(case["image"]).parent for case in samples}:
            check_writable(folder)  # the report puts each verdict beside its volume
        refusals.check_weights(samples, file_hash(self.weights))
        refusals.check_spacing(self.training, samples, self.axcodes, "synthetic volumes")
        remarks = refusals.remarks_on_samples(samples, self.training, self.held_out)
        known = self._check_data()  # before volumes are read, of which copies are kept
        synthetic = self._read(samples, "synthetic volumes")
        training = self._read(self.training, "training volumes")
        remarks += refusals.check_orientation(training.reduced, synthetic.reduced, self.flip_axis)
        for remark in remarks:
            logger.warning(remark)
        prepared = self._prepare(known, training)
        test = prepared.test
        verdicts = test.verdicts(synthetic.reduced)
        points = embed(test.encoder, synthetic.reduced)
        to_training = test.bank.similarities(points).double().numpy()
        to_held_out = prepared.held_out_bank.similarities(points).double().numpy()
        chosen = numpy_generator(self.seed).permutation(len(self.training))[: self.num_membership_volumes]
        p_values = np.array([verdict.p for verdict in verdicts])
        strata = None
        if self.conditions:
            strata = by_stratum(samples, verdicts, self.conditions, self.strata, self.alpha, len(self.held_out))
        return AuditResult(
            samples=samples,
            verdicts=verdicts,
            flagged=flagged_share(p_values, self.alpha, len(self.held_out)),
            memorised=_memorised(verdicts, len(self.training)),
            holdout_share=holdout_share(to_training, to_held_out, seed=self.seed),
            data_copying=data_copying_z(to_training.max(axis=1), test.calibration),
            membership=self._membership([self.training[place] for place in sorted(chosen)]),
            published=published_rule(to_training, prepared.held_out_raw, prepared.held_out_through, seed=self.seed),
            duplicates=prepared.duplicates,
            sources=self.training,
            facts={
                # the encoder's key is a hash of all volumes
                **{name: value for name, value in test.facts.items() if name != "encoder"},
                "alpha": self.alpha,
                "training_volumes": len(self.training),
                "training_patients": len(set(training.groups.tolist())),
                "held_out_patients": len(self.held_out),
                "synthetic_volumes": len(samples),
                **({"remarks": remarks} if remarks else {}),
            },
            strata=strata,
        )

    def _membership(self, training: list[dict]) -> Membership:
        return membership(
            self.generator,
            file_hash(self.weights),
            training,
            self.held_out,
            self.preprocessing,
            self.reconstruct,
            self.folder / "cache" / "losses",
            self.conditions,
            self.device,
            self.seed,
        )

    def _check_data(self) -> bool:
        """Refuse what needs no volume to be read, and return whether the weights are known to be trained on these data."""
        known = refusals.check_training_data(self.weights, self.data)
        refusals.check_calibration_size(len(self.held_out), self.alpha)
        refusals.check_spacing(self.training, self.held_out, self.axcodes, "held-out volumes")
        return known

    def _read(self, cases: Sequence[dict], description: str) -> AuditedVolumes:
        return read_volumes(cases, self.preprocessing, self.folder / "cache" / "reduced", description)

    def _points(self, encoder: torch.nn.Module, *sets: AuditedVolumes) -> torch.Tensor:
        """Points of the same volumes in each set, plain and as the generator's training mirrors them, (N, views, F)."""
        plain = [one.reduced for one in sets]
        mirrored = [] if self.flip_axis is None else [some.flip(2 + self.flip_axis) for some in plain]
        return torch.stack([embed(encoder, some) for some in (*plain, *mirrored)], dim=1)


def _memorised(verdicts: Sequence[Verdict], training_volumes: int) -> Memorised:
    copied = [verdict.source_id for verdict in verdicts if verdict.verdict == "copy"]
    sources = sorted(set(copied), key=lambda source: (-copied.count(source), source))
    interval = clopper_pearson(len(sources), training_volumes)
    return Memorised(len(sources), len(sources) / training_volumes, interval, sources)
