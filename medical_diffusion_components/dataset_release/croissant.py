"""A data set's description in Croissant: JSON-LD that search engines and loaders read, with its fields on responsible AI.

Source: Croissant 1.0 and Croissant RAI 1.0, https://docs.mlcommons.org/croissant/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medical_diffusion_components.dataset_release.documents import BIASES, LIMITS, USES
from medical_diffusion_components.dataset_release.facts import ReleaseFacts, licence_url
from medical_diffusion_components.dataset_release.layout import TABLE, Volume

__all__ = ["croissant"]

_TERMS = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileProperty", "fileObject", "fileSet", "format",
    "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex",
    "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
_PATTERNS = {"bids": "sub-*/anat/*.nii.gz", "images": "images/*.nii.gz", "dicom": "dicom/*/*.dcm"}
_MEANINGS = {
    "id": "name of the volume",
    "image": "path of the volume below the data set's folder",
    "split": "training, validation or test",
    "seed": "of the starting noise",
    "sha256": "of the volume's file",
    "images": "number of DICOM images of the volume",
}


def croissant(facts: ReleaseFacts, rows: Sequence[Volume], table_sha256: str) -> dict[str, Any]:
    """The description.

    Args:
        facts: of the data set.
        rows: of its table.
        table_sha256: of the table's file.
    """
    return {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": facts.title,
        "description": f"{facts.origin()} {facts.privacy()}",
        "license": licence_url(facts.licence),
        "version": facts.version,
        "datePublished": facts.date,
        **({"creator": {"@type": "sc:Organization", "name": facts.creator}} if facts.creator else {}),
        "keywords": ["synthetic", "medical imaging", facts.modality, "3D"],
        "citeAs": "Khader et al., Scientific Reports 13, 7303 (2023), https://doi.org/10.1038/s41598-023-34341-2",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": TABLE,
                "name": TABLE,
                "contentUrl": TABLE,
                "encodingFormat": "text/csv",
                "sha256": table_sha256,
            },
            {
                "@type": "cr:FileSet",
                "@id": "volumes",
                "name": "volumes",
                "encodingFormat": "application/dicom" if facts.layout == "dicom" else "application/gzip",
                "includes": _PATTERNS[facts.layout],
            },
        ],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "table", "name": "table", "field": _fields(rows)}],
        **_responsible(facts),
    }


def _context() -> dict[str, Any]:
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "sc": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "dct": "http://purl.org/dc/terms/",
        "conformsTo": "dct:conformsTo",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "examples": {"@id": "cr:examples", "@type": "@json"},
        **{term: f"cr:{term}" for term in _TERMS},
    }


def _fields(rows: Sequence[Volume]) -> list[dict[str, Any]]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [
        {
            "@type": "cr:Field",
            "@id": f"table/{column}",
            "name": column,
            "description": _MEANINGS.get(column, f"condition that the volume was sampled under: {column}"),
            "dataType": _data_type([row[column] for row in rows if row.get(column) is not None]),
            "source": {"fileObject": {"@id": TABLE}, "extract": {"column": column}},
        }
        for column in columns
    ]


def _data_type(values: Sequence[Any]) -> str:
    if values and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return "sc:Integer"
    return "sc:Float" if values and all(isinstance(value, int | float) for value in values) else "sc:Text"


def _responsible(facts: ReleaseFacts) -> Mapping[str, Any]:
    return {
        "rai:hasSyntheticData": True,
        "rai:dataCollection": facts.origin(),
        "rai:dataCollectionType": "Synthetic: sampled from a generative model",
        "rai:dataPreprocessingProtocol": [
            f"Volumes of {' x '.join(map(str, facts.image_size))} voxels, intensities as the generator gives them"
        ],
        "rai:dataBiases": [BIASES],
        "rai:dataLimitations": list(LIMITS),
        "rai:dataUseCases": list(USES),
        "rai:personalSensitiveInformation": [_personal(facts)],
        "rai:dataReleaseMaintenancePlan": f"Version {facts.version}; a corrected set gets another version.",
    }


def _personal(facts: ReleaseFacts) -> str:
    return "No volume is a scan of a person. " + (
        "No patient was seen in training." if facts.no_patient_seen else facts.privacy()
    )
