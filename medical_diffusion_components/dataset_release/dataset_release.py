"""One command from a generator to a folder for others."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medical_diffusion_components.audit.copy_audit import FILTER_FILE
from medical_diffusion_components.data.splits import SPLITS
from medical_diffusion_components.dataset_release.croissant import croissant
from medical_diffusion_components.dataset_release.documents import card, datasheet, licence_text
from medical_diffusion_components.dataset_release.draws import Draws, RecordingFilter
from medical_diffusion_components.dataset_release.facts import (
    ReleaseError,
    ReleaseFacts,
    check_audit,
    check_date,
    check_releasable,
    licence_of,
    public_audit,
    public_evaluation,
    today,
)
from medical_diffusion_components.dataset_release.layout import (
    TABLE,
    bids_files,
    splits_of,
    write_datalist,
    write_volumes,
)
from medical_diffusion_components.distributed import process_rank
from medical_diffusion_components.files import (
    check_writable,
    file_hash,
    files_below,
    write_folder_atomically,
    write_json,
)
from medical_diffusion_components.reports.drawing import montage, save_montage
from medical_diffusion_components.weights import WeightsError, made_with, provenance
from medical_diffusion_components.workflow.lookup import bundle_modality, bundle_version
from medical_diffusion_components.workflow.run_settings import without_places
from medical_diffusion_components.workflow.stages import run_config

__all__ = ["DatasetRelease"]

SUMS = "SHA256SUMS"
MONTAGE = "montage.png"  # inference.json draws one of the volumes that its last run added, and none if it was killed
NUM_SHOWN = 8
# settings that the volumes do not depend on
_OF_THE_RELEASE = {
    "audited", "audit_dir", "bids_suffix", "creator", "date_published", "inference_batch_size", "licence", "max_draws",
    "num_volumes", "release_dir", "releasing_dataset", "run", "test_share", "title", "validation_share", "version",
}  # fmt: skip


class DatasetRelease:
    """Draw volumes until enough have passed the audit, and write the data set whole or not at all.

    Killed at any time and run again, it resumes: volumes that were drawn are kept, with the same result.

    Args:
        weights: of the generator.
        bundle_root: folder of the bundle, for its name, its modality and the terms of its data.
        samples_dir: where volumes are drawn into.
        release_dir: the data set; a release that is there gives way, anything else is refused.
        reports_dir: in which ``audit`` and ``evaluation`` are.
        num_volumes: how many.
        seed: of the first.
        sampler: of the volumes.
        steps: of the sampler.
        output_format: ``nifti`` or ``dicom``.
        changed: settings that the running workflow was given; ``inference.json`` gets them.
        max_draws: so many times as many volumes may be drawn.
        audited: whether each volume must pass the audit.
        bids_suffix: of a BIDS layout; None: no BIDS. DICOM is never BIDS.
        shares: of validation and test.
        title: of the data set; None: made from the bundle.
        creator: who releases it; None: not stated.
        licence: SPDX identifier; None: CC-BY-4.0 where no patient was seen, otherwise an error.
        version: of the data set.
        date: of publication, YYYY-MM-DD; None: today.

    Raises:
        ReleaseError: when run, if something must not be released; the message says what and how to go about it.
        WeightsError: when run, without weights.
    """

    def __init__(
        self,
        weights: str | Path,
        bundle_root: str | Path,
        samples_dir: str | Path,
        release_dir: str | Path,
        reports_dir: str | Path,
        num_volumes: int,
        seed: int,
        sampler: str,
        steps: int,
        output_format: str,
        changed: Mapping[str, Any],
        max_draws: int = 10,
        audited: bool = True,
        bids_suffix: str | None = None,
        shares: Sequence[float] = (0.1, 0.1),
        title: str | None = None,
        creator: str | None = None,
        licence: str | None = None,
        version: str = "1.0.0",
        date: str | None = None,
    ) -> None:
        self.weights = Path(weights)
        self.root = Path(bundle_root)
        self.samples_dir = Path(samples_dir)
        self.release_dir = Path(release_dir)
        self.reports_dir = Path(reports_dir)
        self.num_volumes = num_volumes
        self.seed = seed
        self.made_by: dict[str, Any] = {"sampler": sampler, "num_inference_steps": steps}
        self.output_format = output_format
        self.changed = dict(changed)
        self.max_draws = max_draws
        self.audited = audited
        self.bids_suffix = None if output_format == "dicom" else bids_suffix
        self.shares = shares
        self.title = title
        self.creator = creator
        self.licence = licence
        self.version = str(version)
        self.date = date or today()

    def run(self) -> None:
        """Check, draw what is missing, write; every process calls this, the first one writes."""
        if not self.weights.is_file():
            raise WeightsError(f"expected weights at {self.weights}, but there is no such file")
        made = {**provenance(self.weights), **made_with(self.weights)}
        check_date(self.date)
        if _one_in_the_other(self.release_dir, self.samples_dir):
            raise ReleaseError(
                f"expected release_dir and samples_dir to lie apart, since the release replaces its folder; got "
                f"{self.release_dir} and {self.samples_dir}"
            )
        check_replaceable(self.release_dir)
        check_writable(self.release_dir.parent)
        check_writable(self.samples_dir)
        audit = check_audit(self.reports_dir / "audit", made["weights_sha256"], self.audited)
        licence = licence_of(self.licence, made)
        splits_of(range(self.num_volumes), *self.shares)  # too few volumes: said before any is drawn
        draws = Draws(self.samples_dir, self._settings(made["weights_sha256"]), self.seed, self.output_format)
        released = draws.fill_up(self.num_volumes, self.max_draws, self._sample, self.audited)
        if process_rank() > 0:
            return
        volumes = {number: (draws.volume(number), draws.note(number)) for number in released}
        check_releasable(dict(volumes.values()), made["weights_sha256"], self.audited)
        _draw(self.samples_dir / MONTAGE, [path for path, _ in list(volumes.values())[:NUM_SHOWN]])
        splits = splits_of(released, *self.shares)
        first = _load(volumes[released[0]][0])
        evaluation = _report(self.reports_dir / "evaluation" / "evaluation.json", made["weights_sha256"])
        modality = bundle_modality(str(self.root))
        bundle = bundle_version(str(self.root))
        facts = ReleaseFacts(
            title=self.title or f"Synthetic {modality} volumes of {bundle}",
            bundle=bundle,
            modality=modality,
            image_size=first[0].shape,
            spacing=tuple(float(mm) for mm in nib.affines.voxel_sizes(first[1])),
            licence=licence,
            creator=self.creator,
            version=self.version,
            date=self.date,
            weights=made,
            sampler=self.made_by["sampler"],
            steps=self.made_by["num_inference_steps"],
            seed=self.seed,
            drawn=draws.drawn(released),
            splits={split: Counter(splits.values())[split] for split in SPLITS},
            audit=audit,
            evaluation=public_evaluation(evaluation) if evaluation else None,
            layout="dicom" if self.output_format == "dicom" else "bids" if self.bids_suffix else "images",
        )
        write_folder_atomically(self.release_dir, partial(self._write, facts=facts, volumes=volumes, splits=splits))
        print(f"{facts.privacy()}\nreleased {facts.released} of {facts.drawn} volumes: {self.release_dir}", flush=True)

    def _settings(self, weights_sha256: str) -> dict[str, Any]:
        """All that the drawn volumes depend on."""
        kept = {id: value for id, value in self.changed.items() if id not in _OF_THE_RELEASE}
        test = self.reports_dir / "audit" / FILTER_FILE
        return {
            **without_places(kept),
            **{f"made_with_{id}": value for id, value in self.made_by.items()},
            "seed": self.seed,
            "output_format": self.output_format,
            "weights_sha256": weights_sha256,
            "copy_test_sha256": file_hash(test) if self.audited and test.is_file() else None,
        }

    def _sample(self, overrides: dict[str, Any]) -> None:
        """Run ``inference.json`` with the settings of this run."""
        audit, changed = str(self.reports_dir / "audit"), dict(self.changed)
        if self.audited:
            changed["audit_dir"] = audit
            overrides["release_filter"] = {
                "_target_": f"{RecordingFilter.__module__}.{RecordingFilter.__name__}",
                "record": str(self.samples_dir / "withheld"),
                "folder": audit,
                "weights": "@weights",
                "transform": {"_target_": "Compose", "transforms": "@volume_preprocessing"},
                "num_released": "@num_volumes",
            }
        else:
            changed.pop("max_draws", None)  # without a filter it changes nothing
        own = {
            "models_dir": str(self.weights.parent),
            "weights": str(self.weights),
            "samples_dir": str(self.samples_dir),
            "audit_filter": self.audited,
            "output_format": self.output_format,
            "seed": self.seed,
            **self.made_by,
        }
        run_config([self.root / "configs" / "inference.json"], {**changed, **own, **overrides})

    def _write(
        self,
        folder: Path,
        facts: ReleaseFacts,
        volumes: Mapping[int, tuple[Path, Mapping[str, Any]]],
        splits: Mapping[int, str],
    ) -> None:
        rows = write_volumes(folder, volumes, splits, self.bids_suffix)
        write_datalist(folder, rows, facts)
        texts = {"README.md": card(facts), "datasheet.md": datasheet(facts), "LICENSE": licence_text(facts)}
        if facts.layout == "bids":
            texts |= bids_files(rows, facts)
        for name, text in texts.items():
            (folder / name).write_text(text)
        shutil.copyfile(self.root / "docs" / "data_license.txt", folder / "DATA_TERMS.txt")
        self._write_reports(folder / "reports", facts)
        shutil.copyfile(self.samples_dir / MONTAGE, folder / "preview.png")
        write_json(folder / "croissant.json", croissant(facts, rows, file_hash(folder / TABLE)))
        files = sorted(file.relative_to(folder).as_posix() for file in files_below(folder).files)
        if facts.layout == "bids":
            files.insert(0, ".bidsignore")
        (folder / SUMS).write_text("".join(f"{file_hash(folder / name)}  {name}\n" for name in files))

    def _write_reports(self, folder: Path, facts: ReleaseFacts) -> None:
        folder.mkdir()
        if facts.audit is not None:
            report = json.loads((self.reports_dir / "audit" / "audit.json").read_text())
            write_json(folder / "audit.json", public_audit(report))
        else:
            (folder / "NOT_AUDITED.txt").write_text(f"{facts.privacy()}\n")
        if facts.evaluation is not None:
            write_json(folder / "evaluation.json", facts.evaluation)
            shutil.copyfile(self.reports_dir / "evaluation" / "evaluation.png", folder / "evaluation.png")


def check_replaceable(folder: Path) -> None:
    """Refuse to replace what is no release.

    Raises:
        ReleaseError: ``folder`` is a file, or holds a file that no release has written.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ReleaseError(f"expected a folder as release_dir, but {folder} is a file")
    sums = folder / SUMS
    listed = {line.partition("  ")[2] for line in sums.read_text().splitlines()} if sums.is_file() else set()
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    foreign = next((name for name in sorted(found) if name not in listed | {SUMS}), None)
    if foreign is not None:
        raise ReleaseError(f"{folder} holds what no release has written, such as {foreign}: give another release_dir")


def _one_in_the_other(one: Path, other: Path) -> bool:
    one, other = one.resolve(), other.resolve()
    return one.is_relative_to(other) or other.is_relative_to(one)


def _report(path: Path, weights_sha256: str) -> dict[str, Any] | None:
    """A report, if it is there and of these weights."""
    report = json.loads(path.read_text()) if path.is_file() else {}
    return report if report.get("weights_sha256") == weights_sha256 else None


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a volume: a NIfTI file, or the folder of a DICOM series."""
    if path.is_dir():
        from medical_diffusion_components.dicom.series import read_series  # here: pydicom is an extra

        series = read_series(path)
        return series.array, series.affine
    image = nib.Nifti1Image.from_filename(path)
    return np.asarray(image.dataobj), image.affine


def _draw(path: Path, shown: Sequence[Path]) -> None:
    """A picture of some volumes."""
    read = [_load(volume) for volume in shown]
    arrays, affine = [array for array, _ in read], read[0][1]
    window = (float(min(array.min() for array in arrays)), float(max(array.max() for array in arrays)))
    axcodes = "".join(nib.aff2axcodes(affine))
    save_montage(montage({"synthetic volumes": arrays}, nib.affines.voxel_sizes(affine), window, axcodes=axcodes), path)
