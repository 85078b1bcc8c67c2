"""Names of files that are written for a case: they say which case, whatever its input file is called."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform
from monai.transforms.utils import TransformBackends
from monai.utils import ImageMetaKey

__all__ = ["NameOutputd", "output_name", "output_stem"]

_NAME = "output_name"


class NameOutputd(MapTransform):
    """Note the case id in a volume's metadata, which travels to whatever is computed from it.

    Entries without ``case_id``, such as an annotation server's, keep the name of their file.

    Args:
        keys: volumes with metadata.
        allow_missing_keys: skip keys that are not there.
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            if "case_id" in data:
                data[key].meta[_NAME] = output_stem(data["case_id"])
        return data


def output_stem(case_id: str) -> str:
    """The case id as the beginning of a file name."""
    return str(case_id).replace("/", "_")


def output_name(meta: Mapping[str, Any] | None, saver: object) -> dict[str, Any]:
    """For ``SaveImage``'s ``output_name_formatter``: the noted name, or that of the input file."""
    meta = meta or {}
    subject = f"{meta[_NAME]}.nii.gz" if _NAME in meta else str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "volume"))
    return {"subject": subject, "idx": None}
