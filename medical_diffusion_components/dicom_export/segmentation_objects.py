"""DICOM series in, DICOM segmentation objects (SEG) out, which refer to the images that they were drawn on.

A SEG belongs to the patient of its images, so it repeats what they say of patient and study; whoever has the one may have
the other. File names, notes and logs hold no more than a hash.

Source: DICOM PS3.3 A.51 (segmentation), C.8.20.2 (segments); written with highdicom.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
from ignite.engine import Engine, Events
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from medical_diffusion_components.dicom.headers import MIN_SLICES, quiet_pydicom
from medical_diffusion_components.dicom.series import SeriesGroup, find_series, read_volume
from medical_diffusion_components.dicom.writing import derived_uid
from medical_diffusion_components.engine_state import running
from medical_diffusion_components.files import PACKAGE_NAME, check_writable, file_hash, versions, write_atomically

__all__ = ["DicomCases", "SegmentationObjects"]

logger = logging.getLogger(__name__)

_ANATOMICAL = Code("91723000", "SCT", "Anatomical Structure")
_TISSUE = Code("85756007", "SCT", "Tissue")
_ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
_SERIES_NUMBER = 9001  # far from those that scanners give


class DicomCases:
    """The DICOM series below a folder as cases for a bundle that reads NIfTI files.

    Each series is read faithfully or refused, and one that is refused ends the run: nothing is left out but localisers of
    fewer than three slices, which are counted in the log.

    Args:
        path: a folder with one or more series.
        folder: where their volumes go, as ``<hash>.nii.gz``.
        series_uid: the one series that is meant; None: all.
        results: where the segmentations will go; tried, like ``folder``, before a file is read.
        trained: modality that the network was trained on, such as MR; a warning names series of another one. None: any.

    Raises:
        ValueError: no path.
        OSError: one of the two folders cannot be written.
        FileNotFoundError: no such folder.
        SeriesRefused: a series that cannot be read faithfully, or none at all.
    """

    def __init__(
        self,
        path: str | Path | None,
        folder: str | Path,
        series_uid: str | None = None,
        results: str | Path | None = None,
        trained: str | None = None,
    ) -> None:
        if path is None:
            raise ValueError("expected a folder of DICOM series as dataset_dir, since output_format is dicom; got none")
        self.folder = Path(folder)
        for place in (folder, results or folder):
            check_writable(place)
        groups = [group for group in find_series(Path(path).expanduser()) if series_uid in (None, group.series_uid)]
        wanted = [group for group in groups if len(group.slices) >= MIN_SLICES] or groups
        if not wanted:
            raise ValueError(f"{path} holds no series {series_uid}")
        if left := len(groups) - len(wanted):
            logger.warning(f"{left} groups of fewer than {MIN_SLICES} slices are not segmented: localisers")
        self.groups: dict[str, SeriesGroup] = {_case_id(group): group for group in wanted}
        modalities = {case: group.slices[0].modality for case, group in self.groups.items()}
        others = {case: modality for case, modality in modalities.items() if trained not in (None, modality)}
        if others:
            logger.warning(
                f"{len(others)} of {len(self.groups)} series are not {trained}, on which the network was trained, but "
                f"{', '.join(sorted(set(map(str, others.values()))))}: what is segmented in them may mean nothing; the "
                f"first is {min(others)}"
            )

    def cases(self) -> list[dict[str, str]]:
        """Write the volumes and list them with ``image`` and ``case_id``."""
        return [{"image": str(self._written(name, group)), "case_id": name} for name, group in self.groups.items()]

    def _written(self, name: str, group: SeriesGroup) -> Path:
        volume = read_volume(group)
        image = nib.Nifti1Image(volume.array, volume.affine)
        image.header.set_xyzt_units("mm")
        return write_atomically(self.folder / f"{name}.nii.gz", lambda temporary: nib.save(image, temporary))


class SegmentationObjects:
    """Attached to an evaluator, write every segmentation as ``<case_id>_seg.dcm``, and name those without any.

    Args:
        folder: where they go.
        cases: the series that were segmented.
        weights: file of the network's weights.
        classes: name -> value in the segmentations; 0 is what lies outside all segments.
        bundle: name and version of the bundle.
        codes: class -> (value, scheme, meaning) of a terminology, such as SNOMED CT. A class without is called a tissue,
            and its label says which.

    Raises:
        ValueError: a code of a class that there is not, or one that is not three texts.
    """

    def __init__(
        self,
        folder: str | Path,
        cases: DicomCases,
        weights: str | Path,
        classes: Mapping[str, int],
        bundle: str,
        codes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.cases = cases
        self.weights = Path(weights)
        self.classes = {name: value for name, value in classes.items() if value != 0}
        self.bundle = bundle
        for name, code in (codes or {}).items():
            if name not in self.classes or len(code) != 3:
                raise ValueError(
                    f"expected a value, a scheme and a meaning for one of {list(self.classes)}, got {name}: {list(code)}"
                )
        self.codes = {name: Code(*code) for name, code in (codes or {}).items()}
        self.empty: list[str] = []  # cases in which nothing was segmented

    def attach(self, evaluator: Engine) -> None:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self)
        evaluator.add_event_handler(Events.COMPLETED, lambda _: self.say_empty())

    def __call__(self, evaluator: Engine) -> None:
        state = running(evaluator)
        for case, output in zip(state.batch, state.output):
            if self.write(str(case["case_id"]), np.asarray(output["pred"].cpu())[0]) is None:
                self.empty.append(str(case["case_id"]))

    def say_empty(self) -> None:
        """Name the cases that have no SEG."""
        if self.empty:
            print(
                f"nothing was segmented in {len(self.empty)} of {len(self.cases.groups)} series, which have no SEG: "
                f"{', '.join(self.empty)}",
                flush=True,
            )

    def write(self, case_id: str, labels: np.ndarray) -> Path | None:
        """Write the SEG of a case. If nothing was segmented there is none, and an earlier one goes: DICOM has no empty SEG.

        Args:
            case_id: one of the cases'.
            labels: (columns, rows, slices), on the grid of the series.

        Raises:
            ValueError: labels of another size than the series.
        """
        group = self.cases.groups[case_id]
        expected = (group.columns, group.rows, len(group.slices))
        if labels.shape != expected:
            raise ValueError(f"{case_id}: expected labels of the series' size {expected}, got {labels.shape}")
        numbers = np.zeros(labels.shape, np.uint8)
        for number, value in enumerate(self.classes.values(), start=1):
            numbers[labels == value] = number
        path = self.folder / f"{case_id}_seg.dcm"
        if not numbers.any():
            path.unlink(missing_ok=True)
            return None
        with _discreet():
            seg = self._segmentation(case_id, numbers.T)  # (slices, rows, columns)
            return write_atomically(path, lambda temporary: seg.save_as(temporary))

    def _segmentation(self, case_id: str, frames: np.ndarray) -> hd.seg.Segmentation:
        slices = self.cases.groups[case_id].slices
        # force: as in reading the series, the 128 bytes and "DICM" in front may be missing
        sources = [pydicom.dcmread(header.path, stop_before_pixels=True, force=True) for header in slices]
        weights = file_hash(self.weights)
        identity = (weights, case_id, *self.classes)  # one series may hold several stacks, such as echoes
        content = hashlib.sha256(repr(sorted(self.codes.items())).encode() + frames.tobytes()).hexdigest()
        seg = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=self._descriptions(weights),
            series_instance_uid=derived_uid(*identity, "series"),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=derived_uid(*identity, content, "segmentation"),  # another content is another object
            instance_number=1,
            manufacturer=PACKAGE_NAME,
            manufacturer_model_name=self.bundle[:64],
            software_versions=versions()[PACKAGE_NAME][:64],
            device_serial_number=weights[:16],
            content_description="Segmentation by a network; research only",
            series_description=f"Segmentation by {self.bundle}"[:64],
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        for dimension in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
            dimension.DimensionOrganizationUID = derived_uid(*identity, "dimensions")  # highdicom draws one
        return seg

    def _descriptions(self, weights: str) -> list[hd.seg.SegmentDescription]:
        algorithm = hd.AlgorithmIdentificationSequence(
            name=self.bundle[:64], family=_ARTIFICIAL_INTELLIGENCE, version=weights[:16]
        )
        return [
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=name[:64],
                segmented_property_category=_ANATOMICAL,
                segmented_property_type=self.codes.get(name, _TISSUE),
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
            )
            for number, name in enumerate(self.classes, start=1)
        ]


@contextmanager
def _discreet() -> Iterator[None]:
    """Keep what highdicom and pydicom say of names and identifiers of patients out of logs and warnings."""
    talkative = logging.getLogger("highdicom")
    level = talkative.level
    talkative.setLevel(logging.CRITICAL + 1)
    try:
        with quiet_pydicom():
            yield
    finally:
        talkative.setLevel(level)


def _case_id(group: SeriesGroup) -> str:
    """Of a series, or of one of the stacks that a series holds; it says nothing about the patient."""
    stack = (group.series_uid, group.echo_time, group.split_by, group.rows, group.columns, group.slices[0].orientation)
    return hashlib.sha256(repr(stack).encode()).hexdigest()[:16]
