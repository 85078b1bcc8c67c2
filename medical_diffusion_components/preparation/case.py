"""One case of a preparation, from raw scan to files: what a worker process does."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from medical_diffusion_components.data.label_maps import looks_like_labels
from medical_diffusion_components.dicom.refusal import SeriesRefused
from medical_diffusion_components.files import file_hash, versions, write_atomically, write_json
from medical_diffusion_components.preparation.appearance import remarks_on_picture
from medical_diffusion_components.preparation.case_ids import without_uids
from medical_diffusion_components.preparation.inventory import RawCase
from medical_diffusion_components.preparation.same_scan import landmarks, to_text
from medical_diffusion_components.preparation.steps.notes import NOTES_KEY, add_note
from medical_diffusion_components.threads import one_thread
from medical_diffusion_components.transforms.volume_error import VolumeError

__all__ = ["CaseResult", "finished_result", "prepare_case", "start_worker"]

IMAGE_KEY = "image"
LABEL_KEY = "label"
PART_KEY = "part"
WRITING = "write"
CANNOT_WRITE = "cannot_write"
_BLOCKS = 6  # of a signature, each way
LANDMARKS = "landmarks"  # a note that is no remark
_MIDDLE = 64  # voxels to each side of a raw scan's centre
_EXACT = 2.0**24  # beyond that float32 rounds whole numbers
_GZIP_LEVEL = 1  # float voxels hardly compress; higher levels cost time and save next to nothing


class NotAScanError(ValueError):
    """The scan is no image: a label map, or a volume of one value, such as an empty mask."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason, text)
        self.reason, self.text = reason, text


class CaseResult(NamedTuple):
    """What became of a case.

    ``status`` is ``made``, ``skipped`` (was there already), ``refused``, ``aside`` (no scan of the kind that is prepared,
    or the same as another) or ``absent``; ``reason`` is a code and ``text`` an explanation of the last three.
    ``outputs`` are dictionaries with ``case_id``, ``image`` (relative path), ``sha256``, ``part`` (or None), ``notes`` and
    ``signature``, with ``landmarks`` of the raw scan, and with ``label`` and ``label_sha256`` where there is a label.
    ``seconds`` is time by step,
    ``peak_mib`` the highest memory use so far of the process that did the work (0 where the system does not tell).
    """

    case_id: str
    patient_id: str
    split: str | None
    status: str
    reason: str = ""
    text: str = ""
    outputs: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float] = {}
    peak_mib: float = 0.0


def prepare_case(case: RawCase, steps: Sequence[Callable], raw_dir: str, dataset_dir: str, settings: str) -> CaseResult:
    """Run a case through the steps and write what comes out; whatever goes wrong makes it a refused one.

    Args:
        case: a case with a scan.
        steps: transforms from a dictionary with ``image`` (a ``RawScan``), ``case_id`` and the case's companions to
            one with ``image`` (1, H, W, D), or to several that differ in ``part``.
        raw_dir: left out of messages, since it may name what nobody else should read.
        dataset_dir: gets ``images/<case_id>.nii.gz`` (``images/<case_id>_<part>.nii.gz``), ``labels/`` with the same names
            where the steps leave a ``label`` beside the image, and ``cases/<case_id>.json``.
        settings: hash of the steps' settings.
    """
    seconds: dict[str, float] = {}
    status, reason, text = "made", "", ""
    outputs: list[dict] = []
    try:
        source = source_hash(case)
        with one_thread():
            items = run_steps(case, steps, seconds)
        with _timed(seconds, WRITING):
            outputs = _write(case, items, Path(dataset_dir))
            note = {"source": source, "settings": settings, "outputs": outputs, "versions": versions()}
            write_json(_note_path(Path(dataset_dir), case), note)
    except Exception as error:
        status = "aside" if isinstance(error, NotAScanError) else "refused"
        (reason, text), outputs = why_refused(error), []
        text = without_uids(text.replace(str(raw_dir).rstrip("/") + "/", ""))
    return CaseResult(*case[:3], status, reason, text, tuple(outputs), seconds, peak_memory())


def finished_result(case: RawCase, dataset_dir: str | os.PathLike, settings: str) -> CaseResult | None:
    """The result of an earlier run, if its source and settings were those of now and its files are whole."""
    note = read_note(dataset_dir, case)
    if note is None or note["settings"] != settings or note["source"] != source_hash(case):
        return None
    for output in note["outputs"]:
        for key, digest in (("image", "sha256"), ("label", "label_sha256")):
            path = Path(dataset_dir) / output.get(key, output["image"])
            if key in output and (not path.is_file() or file_hash(path) != output[digest]):
                return None
    return CaseResult(*case[:3], "skipped", outputs=tuple(note["outputs"]))


def read_note(dataset_dir: str | os.PathLike, case: RawCase) -> dict | None:
    """What ``prepare_case`` noted when it finished a case, or None."""
    path = _note_path(Path(dataset_dir), case)
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def source_hash(case: RawCase) -> str:
    """SHA-256 over names, sizes and times of the case's files: reading them whole would take as long as preparing."""
    listing: list[Any] = [case.found.series_uid, case.found.num_images]
    own = case.found.files or (case.found.path,)
    for path in (*own, *case.companions.values()):
        root = Path(path)
        files = sorted(root.rglob("*")) if root.is_dir() else [root]
        for file in files:
            if not file.is_dir() and file.exists():
                stat = file.stat()
                listing.append([str(file.relative_to(root.parent)), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def start_worker(memory_gib: float | None = None) -> None:
    """Set up a worker process; the initializer of a process pool.

    The process ends when the one that started it is gone, even by ``kill -9``, and leaves Ctrl-C to it.

    Args:
        memory_gib: limit of the process' own memory; a case that wants more is refused instead of bringing the
            machine down. None, or a system other than Linux: no limit.
    """
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if memory_gib is not None and os.path.exists("/proc/self/status"):
        import resource

        limit = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def peak_memory() -> float:
    """Highest resident memory of this process so far in MiB, or 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def run_steps(case: RawCase, steps: Sequence[Callable], seconds: dict[str, float]) -> list[dict]:
    """Run a case through the steps; the time of each is added to ``seconds``.

    Raises:
        NotAScanError: the scan is a label map, or of one value.
        Exception: whatever a step raises.
    """
    items: list[dict] = [{IMAGE_KEY: case.scan, "case_id": case.case_id, **case.companions}]
    for number, step in enumerate(steps):
        with _timed(seconds, type(step).__name__):
            made = [step(item) for item in items]
            items = [item for out in made for item in (out if isinstance(out, (list, tuple)) else [out])]
        if number == 0:
            _refuse_labels(items, case)
            _note_appearance(items)
    parts = [item.get(PART_KEY) for item in items]
    if not items or len(set(parts)) < len(parts):
        raise ValueError(f"expected results that differ in {PART_KEY!r}, got {len(items)} with {parts}")
    return items


def _refuse_labels(items: Sequence[Mapping[str, Any]], case: RawCase) -> None:
    for item in items:
        image = item.get(IMAGE_KEY)
        if isinstance(image, MetaTensor) and looks_like_labels(image.numpy()):
            name, low = Path(case.found.path).name, float(image.min())
            if max(abs(low), abs(float(image.max()))) > _EXACT:
                raise VolumeError(
                    f"{name}: expected intensities up to {_EXACT:.3g}, got {low:.3g} to {float(image.max()):.3g}"
                )
            if low == float(image.max()) or bool(image.isnan().all()):
                text = f"{name}: every voxel is {low:g}: an empty mask, or a scan without a picture"
                raise NotAScanError("one_value", text)
            raise NotAScanError("label_map", f"{name}: few whole numbers in regions: a label map, not an image")


def _note_appearance(items: Sequence[dict]) -> None:
    for item in items:
        image = item.get(IMAGE_KEY)
        if isinstance(image, MetaTensor):
            for remark in remarks_on_picture(image):
                add_note(item, remark, True)
            add_note(item, LANDMARKS, to_text(landmarks(image.numpy()[0], _MIDDLE)))


def _write(case: RawCase, items: Sequence[Mapping[str, Any]], dataset_dir: Path) -> list[dict]:
    outputs = []
    for item in items:
        part = item.get(PART_KEY)
        name = case.case_id if part is None else f"{case.case_id}_{part}"
        image = f"images/{name}.nii.gz"
        content = _nifti_bytes(item[IMAGE_KEY])
        path = write_atomically(dataset_dir / image, Path.write_bytes, content)
        notes = dict(item.get(NOTES_KEY, {}))
        places = notes.pop(LANDMARKS, "")
        signature = _signature(item[IMAGE_KEY])
        outputs.append(
            {
                "case_id": name,
                "image": image,
                "sha256": file_hash(path),
                "part": part,
                "notes": notes,
                "signature": signature,
                "landmarks": places,
            }
        )
        if LABEL_KEY in item:
            label = f"labels/{name}.nii.gz"
            content = _nifti_bytes(item[LABEL_KEY], np.uint8)
            path = write_atomically(dataset_dir / label, Path.write_bytes, content)
            outputs[-1].update(label=label, label_sha256=file_hash(path))
    earlier = read_note(dataset_dir, case) or {"outputs": []}
    for stale in _files(earlier["outputs"]) - _files(outputs):
        (dataset_dir / stale).unlink(missing_ok=True)
    return outputs


def _signature(volume: MetaTensor) -> list[float]:
    """Means of the volume's blocks, up to 6 each way: what conversions to other formats leave as it is."""
    h, w, d = (min(_BLOCKS, n) for n in volume.shape[1:])
    means = torch.nn.functional.adaptive_avg_pool3d(volume.as_tensor()[None].float(), (h, w, d))
    return [round(float(mean), 5) for mean in means.flatten()]


def _files(outputs: Sequence[Mapping[str, Any]]) -> set[str]:
    return {output[key] for output in outputs for key in (IMAGE_KEY, LABEL_KEY) if key in output}


def _nifti_bytes(volume: MetaTensor, dtype: type = np.float32) -> bytes:
    if not isinstance(volume, MetaTensor) or volume.ndim != 4 or volume.shape[0] != 1:
        shape = tuple(getattr(volume, "shape", ()))
        raise ValueError(f"the steps must end with a volume (1, H, W, D), got {type(volume).__name__} {shape}")
    affine = np.asarray(volume.affine, dtype=np.float64)
    nifti = nib.Nifti1Image(np.asarray(volume.as_tensor()[0]).astype(dtype), affine)
    nifti.header.set_xyzt_units("mm")
    nifti.set_qform(affine, code=1)
    nifti.set_sform(affine, code=1)
    return gzip.compress(nifti.to_bytes(), _GZIP_LEVEL, mtime=0)  # the same voxels give the same bytes


def _note_path(dataset_dir: Path, case: RawCase) -> Path:
    return dataset_dir / "cases" / f"{case.case_id}.json"


def why_refused(error: Exception) -> tuple[str, str]:
    """Code and text of a refusal."""
    if isinstance(error, SeriesRefused):
        return error.reason.value, error.text
    if isinstance(error, NotAScanError):
        return error.reason, error.text
    if isinstance(error, VolumeError):
        return "unusable_volume", str(error)
    text = " ".join(str(error).split())[:500]
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "out_of_memory", "the case needs more memory than a worker may take (worker_memory_gib)"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}, line {frame.lineno}"
    if isinstance(error, OSError) and "cannot write" in text:
        return CANNOT_WRITE, text
    return "failed", f"{type(error).__name__}: {text} ({where})"


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
