"""What to do about a refusal or a remark: the knob to set, or the file to mend."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

__all__ = ["advice_for", "grouped"]

# the words of a refusal -> what to do; the first that fits counts
_ADVICE = (
    (r"label values must be whole", "resample labels by nearest neighbour: their values are those of --classes"),
    (r"label values outside", "mend the labels, or --classes: it names all values, from 0 on without gaps"),
    (
        r"is missing in file|some lack them|GantryDetectorTilt|MONOCHROME",
        "export the series again, unchanged: its headers lack or contradict what a volume needs",
    ),
    (r"the label (has|lies)", "save the label on the grid of its image, or leave the case out"),
    (r"lists no label", "list a label for every case in dataset.json"),
    (r"sform and qform", "--affine_from sform or --affine_from qform, whichever is right"),
    (r"expected voxels of", 'mend the unit in the header, or believe it with --spacing_range "[low, high]"'),
    (r"an extent of at most", "mend the spacing in the header: no patient is that long"),
    (r"slices, got \w+ ones", "put series of other planes elsewhere, or --plane null"),
    (r"slices each way|: a single slice", "a localiser or a single slice: put it elsewhere"),
    (r"modality", "put series of other modalities elsewhere, or --modality null"),
    (r"Hounsfield", "convert again from DICOM, or believe it with --check_hounsfield False"),
    (r"right angles|sheared", "resample the file to a grid with right angles"),
    (r"three axes|3 dimensions|4D|time", "split the file into volumes, one a file"),
    (r"array without spacing", "convert arrays to NIfTI, which has a spacing"),
    (r"multi-frame", "convert to single slices, or to NIfTI, as with dcm2niix"),
    (r"rename it to|unpack it once", "rename or unpack the file, as the reason says"),
    (r"expected real numbers", "convert the file to one real number for each voxel, such as a magnitude"),
    (
        r"damaged|incomplete|truncated|not a gzip|cannot be read|cannot be decoded|unreadable|is empty",
        "fetch the file again",
    ),
    (r"light and dark", "look at the picture: an inverted scan has to be turned back before"),
    (r"expected intensities up to", "the numbers are too large for float32: subtract an offset, or divide them"),
    (
        r"repeat a position",
        "several time points or copies in one series: put each into a folder and a series of its own",
    ),
    (r"missing|gap|apart|lack|expected \d+ slices", "fetch the series again: slices are missing"),
    (r"say which is meant", "put one of the series elsewhere, or name it in a manifest"),
    (r"skull|head", "--brain_extraction, or --skull report"),
    (r"worker_memory_gib", "--worker_memory_gib"),
    (r"constant|NaN|finite|every voxel", "leave the scan out: it holds no picture"),
    (r"in the raw folder", "download it, or --allow_absent True"),
    (r"expected size|expected \(|voxels, got", "prepare the folder with prepare.yaml, or set --image_size"),
)
_REMARKS = {
    "orientation_unknown": "neither transform is set: look at the sheet whether left is left",
    "identity_affine": "voxels of 1 mm and an origin of 0, as in a header that nobody filled in: convert again",
    "oblique_slices": "thick slices lie more than 30 degrees from the nearest plane: look at the sheet whether they fit in",
    "unit_not_millimetres": "brought to millimetres: look at the sizes in the table",
    "affine_from_sform": "the sform was taken, as set",
    "affine_from_qform": "the qform was taken, as set",
    "derived_image": "computed from other images (DERIVED): put it elsewhere, unless it is what you want",
    "no_magnitude": "a phase, real or imaginary part, by its image type: put it elsewhere, unless it is what you want",
    "was_lossy": "was compressed with loss at some time: look at the picture",
    "text_burned_in": "text is burned into the pixels, by BurnedInAnnotation: look whether it names the patient",
    "part_of_series": "the series holds other images, such as a second echo: they are not in the volume (echo_time)",
    "first_slices_absent": "its slices are numbered from more than 1 on: look whether some are missing",
    "empty_slices": "slices of one value lie between others, as where a conversion lost them: look at it, or convert again",
    "cut_by_empty_slices": "empty slices follow on a wide one, as where a download stopped: look at it, or fetch it again",
    "repeated_slices": "neighbouring slices are equal in every voxel: look at it, or convert again",
    "looks_like_noise": "neighbouring voxels have nothing in common: look at it, and leave it out if it shows nothing",
    "slope_not_a_number": "the slope in the header is no number and was taken as 1: convert again where intensities matter",
    "statistical_map": "by its intent code the values are those of a test: put it elsewhere, unless it is what you want",
    "philips_scale": "a Philips scanner: intensities are comparable within the scan only, so use no window (--limits_from)",
    "few_voxels_set_the_limits": "a few very bright voxels darken the rest: --limits_from percentiles --limits [0.0,99.9]",
    "skull": "looks like a head: --brain_extraction, unless it is meant to have its skull",
}


def advice_for(text: str) -> str:
    """What to do about a refusal or a remark."""
    if text in _REMARKS:
        return _REMARKS[text]
    found = (advice for words, advice in _ADVICE if re.search(words, text, flags=re.IGNORECASE))
    return next(found, "see the table of symptoms in docs/own_data.md")


def grouped(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """Advice -> the cases that it is for."""
    found: dict[str, list[str]] = defaultdict(list)
    for case, text in refused.items():
        found[advice_for(text)].append(case)
    return dict(found)
