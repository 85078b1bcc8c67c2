"""The evaluation of a generator, or of anybody's volumes: sets, rows, and the files that they end in."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import Evaluator
from torch import nn

from medical_diffusion_components.chance import numpy_generator
from medical_diffusion_components.data.training_of_weights import without_hashes
from medical_diffusion_components.distributed import process_rank
from medical_diffusion_components.engine_state import running
from medical_diffusion_components.evaluation.comparison import (
    FEWEST,
    FEWEST_HELD_OUT,
    HALVINGS,
    PROTOCOL,
    Comparison,
    VolumeSet,
)
from medical_diffusion_components.evaluation.copies import audited_pairs, of_these_volumes
from medical_diffusion_components.evaluation.evaluation_page import EvaluationPage
from medical_diffusion_components.evaluation.features import FeatureReader
from medical_diffusion_components.evaluation.obedience import Obedience, ObedienceFound
from medical_diffusion_components.evaluation.older_figures import older_figures
from medical_diffusion_components.evaluation.report import headline, markdown, rounded
from medical_diffusion_components.evaluation.spaces import AnatomySpace, check_judges
from medical_diffusion_components.evaluation.volume_sets import set_remarks
from medical_diffusion_components.files import check_writable, file_hash, versions, write_atomically, write_json
from medical_diffusion_components.metrics.diversity import pair_similarities, published_ms_ssim
from medical_diffusion_components.metrics.turned import turned_against
from medical_diffusion_components.pages.dot_plot import dot_plot

__all__ = ["GeneratorEvaluation", "process_pool"]

Cases = Sequence[Mapping[str, Any]]
TOO_FEW = 30
ANATOMY = "anatomy"  # the space in which the page looks for neighbours
ROWS = {
    "first_stage": "held-out volumes through the first stage, against others: what no sampler can beat",
    "synthetic": "synthetic against held-out volumes",
    "synthetic_latent": "synthetic volumes against reconstructions of held-out ones: the diffusion alone",
    "training": "training against held-out volumes: must equal the floor",
    "baseline": "volumes of the baseline against held-out ones",
}
GUIDED = "synthetic volumes of that guidance scale against held-out ones"


class GeneratorEvaluation:
    """Reads the sets, compares them, and writes ``evaluation.json``, ``.md``, ``.png``, ``features.npz``, ``files.json``.

    Args:
        reader: files -> features.
        training: cases that the generator was trained on.
        reference: held-out cases that synthetic volumes are compared with.
        synthetic: callable that gives the synthetic cases, sampling those that are missing.
        folder: where the results go.
        facts: what else goes into the JSON, such as the hash of the weights and the sampler.
        reconstructions: callable that sends cases through the first stage; None where there is none.
        baseline: cases of another generator.
        num_training: training volumes that are used, at most; a random choice.
        neighbours: MS-SSIM is taken of each volume with this many others of its set.
        teachers: feature networks of losses; no space that counts may judge with one.
        executor: whose workers compute features; shut down when they have, so that none waits until Python ends.
        page: writes the page to look at; None for none.
        guided: name of a row -> callable as ``synthetic``, for the same generator at other guidance scales.
        obedience: measures whether volumes have what they were asked for; None for a generator without conditions.
        audit: what a copy audit found, as ``audit_headline`` gives it; None without one of this generator.
        permutations: for the p-values.
        seed: of every random choice.
        flip_axis: along which the training mirrors, so that volumes may lie either way; None where it does not.

    Raises:
        ValueError: too few patients or volumes to say anything of: when made, fewer than four held-out patients or two
            training volumes; when run, fewer than three volumes that are to be judged.
    """

    def __init__(
        self,
        reader: FeatureReader,
        training: Cases,
        reference: Cases,
        synthetic: Callable[[], Cases],
        folder: str | Path,
        facts: Mapping[str, Any],
        reconstructions: Callable[[Cases], Cases] | None = None,
        baseline: Cases | None = None,
        num_training: int = 100,
        neighbours: int = 4,
        teachers: Sequence[nn.Module] = (),
        executor: Executor | None = None,
        page: EvaluationPage | None = None,
        audit: Mapping[str, Any] | None = None,
        permutations: int = 999,
        seed: int = 0,
        guided: Mapping[str, Callable[[], Cases]] | None = None,
        obedience: Obedience | None = None,
        flip_axis: int | None = None,
    ) -> None:
        check_judges(reader.spaces, teachers)
        self.reader = reader
        self.all_training = list(training)
        self.training = _choice(training, num_training, seed)
        self.reference = list(reference)
        self._check_sizes(str(facts.get("reference", "test")))
        self.synthetic = synthetic
        self.folder = Path(folder)
        self.facts = dict(facts)
        self.reconstructions = reconstructions
        self.baseline = baseline
        self.neighbours = neighbours
        self.executor = executor
        self.page = page
        self.audit = audit
        self.permutations = permutations
        self.seed = seed
        self.guided = dict(guided or {})
        self.obedience = obedience
        self.flip_axis = flip_axis

    def run(self, first_stage: Evaluator | None = None) -> dict[str, Any]:
        """Compare, write, print, and return what was written.

        Volumes that somebody gave are read before anything is computed.

        Args:
            first_stage: measures PSNR, SSIM and codebook use of reconstructions, for the same report.
        """
        check_writable(self.folder)
        cases = self._cases()
        metrics: Mapping[str, float] = {}
        if first_stage is not None:
            first_stage.run()
            metrics = running(first_stage).metrics
        if self.reconstructions is not None:
            cases["reconstructions"] = self.reconstructions(self.reference)
        try:
            sets = {name: self._read(name, some) for name, some in cases.items()}
        finally:
            if self.executor is not None:
                self.executor.shutdown()
        if process_rank() > 0:
            return {}
        report = self._report(cases, sets, self._rows(sets), metrics)
        found = ObedienceFound({}, {})
        if self.obedience is not None:
            found = self.obedience(cases, sets, self.reader.spaces, self.reader.volume)
            report["obedience"] = rounded(found.report)
        self._write(report, cases, sets, found)
        if self.page is not None:
            anatomy = {name: one.features[ANATOMY] for name, one in sets.items()}
            pairs = audited_pairs(self.audit, cases["synthetic"], self.all_training)
            by_condition = (self.audit or {}).get("by_condition")
            self.page(report, cases, anatomy, self.reader.volume, self.seed, pairs, found.points, by_condition)
        print("\n".join([*headline(report), *report["warnings"], f"evaluation: {self.folder}"]), flush=True)
        return report

    def _cases(self) -> dict[str, Cases]:
        """Set -> cases, without reconstructions. What somebody gave is read, and what is missing is sampled."""
        if self.page is not None:
            self._check("compared", self.page.compared, fewest=0)
        baseline = {} if self.baseline is None else {"baseline": self._check("baseline", self.baseline)}
        cases = {"synthetic": self._check("synthetic", self.synthetic())}
        cases |= {"reference": self.reference, "training": self.training}
        return cases | {name: sampled() for name, sampled in self.guided.items()} | baseline

    def _rows(self, sets: Mapping[str, VolumeSet]) -> dict[str, Any]:
        """Name of a row -> what two sets have in common in every space, in the order of the report."""
        comparison = Comparison(sets["reference"], sets["training"], self.reader.spaces, self.permutations, self.seed)
        rows = {"synthetic": comparison.between(sets["synthetic"])}
        if _patients(self.training) >= FEWEST:
            rows["training"] = comparison.between(sets["training"])
        if "reconstructions" in sets:
            rows["first_stage"] = comparison.paired(sets["reconstructions"])
            rows["synthetic_latent"] = comparison.between(sets["synthetic"], sets["reconstructions"])
        if "baseline" in sets:
            rows["baseline"] = comparison.between(sets["baseline"])
        rows |= {name: comparison.between(sets[name]) for name in self.guided}
        return {name: rows[name] for name in (*ROWS, *self.guided) if name in rows}

    def _check(self, name: str, cases: Cases, fewest: int = FEWEST) -> Cases:
        """The cases as they came, once there are enough of them and each could be read."""
        if len(cases) < fewest:
            more = "raise --num_volumes, or give more files" if name == "synthetic" else "give more files"
            raise ValueError(
                f"an evaluation needs {fewest} or more {name} volumes, or nobody could give their errors; got "
                f"{len(cases)}: {more}"
            )
        self.reader.check(cases, f"reading {name} volumes")
        return cases

    def _check_sizes(self, split: str) -> None:
        patients = _patients(self.reference)
        if patients < FEWEST_HELD_OUT:
            raise ValueError(
                f"an evaluation needs held-out volumes of {FEWEST_HELD_OUT} or more patients, since one half of them"
                f" against the other is what every number is held against; got {len(self.reference)} of {patients}: "
                f"give dataset_dir more patients under {split!r}; with fewer than {TOO_FEW} nothing can be claimed "
                "from FD, precision or recall"
            )
        if len(self.training) < 2:
            raise ValueError(
                "an evaluation needs 2 or more training volumes, which give every space its unit; got "
                f"{len(self.training)}: give dataset_dir more under 'training', or raise --num_training"
            )

    def _read(self, name: str, cases: Cases) -> VolumeSet:
        features = self.reader(cases, f"features: {name}", self.executor)
        similarities = {}
        # MS-SSIM needs the volumes themselves: the first process alone computes it, and of training volumes nobody asks
        if name != "training" and process_rank() == 0:
            volumes = self._volumes(cases)
            similarities["ms_ssim"] = pair_similarities(volumes, self.neighbours)
            channels, *size = volumes[0].shape
            if channels == 1 and min(size) >= 32:
                similarities["ms_ssim_published"] = pair_similarities(volumes, 1, published_ms_ssim)
        patients = np.array([str(case["patient_id"]) for case in cases])
        return VolumeSet(name, np.unique(patients, return_inverse=True)[1], features, similarities)

    def _volumes(self, cases: Cases) -> _Volumes:
        return _Volumes(self.reader, cases, self.neighbours + 1)

    def _report(
        self,
        cases: Mapping[str, Cases],
        sets: Mapping[str, VolumeSet],
        rows: Mapping[str, Any],
        first_stage_metrics: Mapping[str, float],
    ) -> dict[str, Any]:
        counts = {name: len(some) for name, some in cases.items()}
        return {
            "protocol": PROTOCOL,
            "metrics": rounded(dict(first_stage_metrics)),
            "n": {**counts, "held_out_patients": len(np.unique(sets["reference"].groups))},
            **without_hashes(self.facts),
            "spaces": {
                name: {
                    "what": space.description,
                    "counts": space.counts,
                    "dims": sets["training"].features[name].shape[1],
                }
                for name, space in self.reader.spaces.items()
            },
            "what_rows_are": {name: ROWS.get(name, GUIDED) for name in rows},
            "rows": rounded(rows),
            "older_figures": rounded(older_figures(*(self._volumes(cases[one]) for one in ("synthetic", "reference")))),
            "audit": of_these_volumes(self.audit, cases["synthetic"]),
            "warnings": [*self._warnings(counts, rows, cases), *self.remarks_on_turned(sets)],
            "settings": {"seed": self.seed, "permutations": self.permutations, "halvings": HALVINGS},
            "versions": versions(),
        }

    def _warnings(self, counts: Mapping[str, int], rows: Mapping[str, Any], cases: Mapping[str, Cases]) -> list[str]:
        found = []
        fewest = min(counts["synthetic"], counts["reference"])
        if fewest < TOO_FEW:
            space = next(name for name, one in self.reader.spaces.items() if one.counts)
            cell = rows["synthetic"][space]["fd"]
            found.append(
                f"n = {fewest}: FD in {space} reads {cell['floor']:.3g} for equal distributions at n = {cell['floor_n']}. "
                "Look at pictures, KID and MMD with their errors; make no claim from FD, precision or recall"
            )
        if "training" not in rows:
            found.append(
                f"training volumes have no row: {_patients(self.training)} patients, and errors need at least {FEWEST}"
            )
        if self.reconstructions is None:
            found.append("no first stage: what its decoder and what the diffusion gets wrong cannot be told apart")
        if counts["synthetic"] != counts["reference"]:
            found.append(
                f"{counts['synthetic']} synthetic and {counts['reference']} held-out volumes: numbers that depend on n "
                "compare with the floor only at the floor's n, as drawn here and in brackets in evaluation.md"
            )
        for name in cases.keys() & {"synthetic", "baseline"}:
            found += set_remarks(name, cases[name], self.reference, self.all_training)
        return found

    def remarks_on_turned(self, sets: Mapping[str, VolumeSet]) -> list[str]:
        """Remarks on volumes turned, mirrored or inverted against the training ones, but along the axis of its flips."""
        space, found = self.reader.spaces[ANATOMY], []
        if not isinstance(space, AnatomySpace):
            return []
        channels, *size = self.reader.volume(self.training[0]).shape
        blocks = (-1, channels, *space.grid(size))
        for name in ("synthetic", "baseline"):
            if name not in sets:
                continue
            training, given = (torch.from_numpy(sets[s].features[ANATOMY]).view(blocks) for s in ("training", name))
            turned = turned_against(training, given, self.flip_axis)
            if turned is not None:
                found.append(f"{turned.number} of {len(given)} {name} volumes {turned}: were they prepared as these?")
        return found

    def _write(
        self,
        report: Mapping[str, Any],
        cases: Mapping[str, Cases],
        sets: Mapping[str, VolumeSet],
        found: ObedienceFound,
    ) -> None:
        arrays = {f"{name}/{key}": array for name, one in sets.items() for key, array in one.features.items()}
        arrays |= {f"{name}/{key}": array for name, one in sets.items() for key, array in one.similarities.items()}
        arrays |= {f"{name}/groups": one.groups for name, one in sets.items()}
        for condition, pairs in found.points.items():
            arrays |= {f"obedience/{condition}/{row}": pair for row, pair in pairs.items()}

        def save(path: Path) -> None:
            with open(path, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)

        files = {name: [file_hash(case["image"]) for case in some] for name, some in cases.items()}
        write_atomically(self.folder / "features.npz", save)
        text = markdown(report)
        write_json(self.folder / "files.json", {"sha256 of every file, in the order of features.npz": files})
        write_json(self.folder / "evaluation.json", report)
        write_atomically(self.folder / "evaluation.md", lambda temporary: temporary.write_text(text))
        write_atomically(self.folder / "evaluation.png", dot_plot(report).savefig)


class _Volumes(Sequence[torch.Tensor]):
    """Volumes that are read when they are asked for; the last ``kept`` stay in memory, however many there are."""

    def __init__(self, reader: FeatureReader, cases: Cases, kept: int) -> None:
        self.cases = cases
        self.read = lru_cache(kept)(lambda number: reader.volume(cases[number]))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, number):
        return self.read(number)


def _patients(cases: Cases) -> int:
    return len({str(case["patient_id"]) for case in cases})


def _choice(cases: Cases, most: int, seed: int) -> list[Mapping[str, Any]]:
    if len(cases) <= most:
        return list(cases)
    kept = numpy_generator(seed, 2).permutation(len(cases))[:most]
    return [cases[place] for place in sorted(kept)]


def process_pool(num_workers: int) -> Executor | None:
    """An executor of so many processes; None for 0, which is this process."""
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) if num_workers > 0 else None
