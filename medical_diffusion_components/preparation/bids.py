"""What the names of a BIDS data set say: subject, session, run, suffix, and the table of participants.

Source: Gorgolewski et al., "The brain imaging data structure", Scientific Data 3, 160044 (2016);
Brain Imaging Data Structure specification 1.10, "Common principles".
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from medical_diffusion_components.data.splits import spelling
from medical_diffusion_components.data.tables import table_lines

__all__ = [
    "Entities",
    "derivatives",
    "entities_of",
    "is_derivative",
    "keep_one_per_session",
    "parse_select",
    "participant_conditions",
    "read_participants",
    "subject_of_folder",
]

CARRIED = ("age", "sex", "group")  # columns of participants.tsv that go into dataset.json
_MISSING = {"", "n/a", "na", "nan", "null", "-", "?", "unknown"}
_OLDEST = 125.0  # years
_DERIVATIVES = {"derivatives", "sourcedata", "code", "stimuli"}
_PAIR = re.compile(r"(?:^|_)([A-Za-z]+)-([A-Za-z0-9]+)")


class Entities(NamedTuple):
    """``subject`` (``sub-01``) and ``session`` (``ses-01``), or empty; ``values``: all entities by key, with ``suffix``."""

    subject: str
    session: str
    values: Mapping[str, str]


def entities_of(inside: str) -> Entities:
    """The entities in a path; those of the file's name count before those of its folders."""
    path = PurePosixPath(inside)
    name = path.name.split(".")[0]
    values: dict[str, str] = {}
    for part in (*path.parts[:-1], name):
        if part == name or re.match(r"(sub|ses)-", part):
            values.update({key.lower(): value for key, value in _PAIR.findall(part)})
    if "sub" in values and "_" in name:
        values["suffix"] = name.rsplit("_", 1)[1]
    subject = f"sub-{values['sub']}" if "sub" in values else ""
    session = f"ses-{values['ses']}" if "ses" in values else ""
    return Entities(subject, session, values)


def subject_of_folder(inside: str) -> str:
    """The subject that the folders of a path name, whatever its file is called."""
    return entities_of(str(PurePosixPath(inside).parent / "file")).subject


def is_derivative(inside: str, bids_roots: Iterable[str]) -> bool:
    """Whether a path lies in a folder that BIDS keeps, below a root, for what was made from the scans, or not converted."""
    parts = PurePosixPath(inside).parts
    for root in bids_roots:
        top = PurePosixPath(root).parts
        if parts[: len(top)] == top and len(parts) > len(top) + 1 and parts[len(top)] in _DERIVATIVES:
            return True
    return False


def derivatives(root: Path, files: Sequence[str]) -> set[str]:
    """Which files below ``root`` lie where BIDS keeps derivatives: by the folder's name, or by its description."""
    roots, described = bids_roots(files), set()
    for inside in files:
        path = PurePosixPath(inside)
        if path.name == "dataset_description.json" and len(path.parts) > 1:
            with suppress(OSError, ValueError, AttributeError):  # unreadable, no JSON, no object: it calls them nothing
                kind = json.loads((root / inside).read_bytes()).get("DatasetType")
                described |= {path.parent} if str(kind).lower() == "derivative" else set()
    return {
        inside
        for inside in files
        if is_derivative(inside, roots) or not described.isdisjoint(PurePosixPath(inside).parents)
    }


def bids_roots(files: Iterable[str]) -> set[str]:
    """Folders that hold a ``dataset_description.json``, a ``participants.tsv`` or folders of subjects."""
    roots = set()
    for inside in files:
        path = PurePosixPath(inside)
        if path.name in ("dataset_description.json", "participants.tsv"):
            roots.add(str(path.parent))
        for place in path.parents:
            if re.match(r"sub-[A-Za-z0-9]+$", place.name):
                roots.add(str(place.parent))
    return {root for root in roots if not any(part in _DERIVATIVES for part in PurePosixPath(root).parts)}


def parse_select(select: str | Mapping[str, Iterable[str] | str]) -> dict[str, set[str]]:
    """``"suffix=T1w,acq=mprage|space"`` or a dictionary as allowed values by entity.

    Raises:
        ValueError: a text that is no list of ``entity=value``.
    """
    if isinstance(select, str):
        pairs = [part.partition("=") for part in select.split(",")]
        if any(not key.strip() or not value.strip() for key, _, value in pairs):
            raise ValueError(
                f"select must read entity=value[|value][,entity=value], such as suffix=T1w; got {select!r}"
            )
        return {key.strip(): set(value.strip().split("|")) for key, _, value in pairs}
    return {
        key: {str(v) for v in ([values] if isinstance(values, (str, int)) else values)}
        for key, values in select.items()
    }


def keep_one_per_session(scans: Iterable[str]) -> set[str]:
    """Of the scans of one subject and session the one of the lowest run, then of the fewest entities, then by name."""
    sessions: dict[tuple[str, str], list[str]] = defaultdict(list)
    for inside in scans:
        found = entities_of(inside)
        sessions[found.subject or inside, found.session].append(inside)

    def order(inside: str) -> tuple:
        values = entities_of(inside).values
        run = values.get("run", "1")
        return (int(run) if run.isdecimal() else 1, len(values), inside)

    return {min(held, key=order) for held in sessions.values()}


def about_participant(people: Mapping[str, Mapping[str, str]], subject: str) -> Mapping[str, str]:
    """What the table says of a subject, whether either of them has ``sub-`` in front of the name or not."""
    return next((people[name] for name in _names(subject) if name in people), {})


def check_participants(people: Mapping[str, Mapping[str, str]], subjects: Iterable[str]) -> None:
    """Raises: ValueError: the table knows something of its participants, and none of the subjects is among them."""
    names = sorted({subject for subject in subjects if subject})
    if names and any(people.values()) and not any(people.keys() & set(_names(name)) for name in names):
        raise ValueError(
            f"participants.tsv lists none of the {len(names)} subjects: it has {_nearest(people, names[0])}, and the files "
            f"{names[0]}. Write the same names in both, or move the table away if age, sex and group are not wanted"
        )


def _nearest(people: Iterable[str], subject: str) -> str:
    """The participant that a subject most likely is: of the same name but for leading zeros, or the most similar one."""
    listed, bare = sorted(people), spelling(subject.removeprefix("sub-"))
    alike = [name for name in listed if spelling(name.removeprefix("sub-")) == bare]
    return (alike or get_close_matches(subject, listed, 1, cutoff=0.0))[0]


def remark_on_unlisted(people: Mapping[str, Mapping[str, str]], subjects: Iterable[str]) -> list[str]:
    """A remark if there is a table, and subjects that it does not list: perhaps it writes their names otherwise."""
    missing = sorted({subject for subject in subjects if subject and not people.keys() & set(_names(subject))})
    if not people or not missing:
        return []
    return [
        f"participants.tsv does not list {len(missing)} of the subjects, the first is {missing[0]} (it lists "
        f"{_nearest(people, missing[0])}): nothing is known of their age, sex and group"
    ]


def remark_on_values(people: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Remarks on a table of participants that says nothing, and on values that nobody can use as they are written."""
    if not people:
        return []
    if not any(people.values()):
        return [
            "participants.tsv has none of the columns age, sex and group, or no value in them: give --conditions_table"
        ]
    remarks = []
    ages = {about["age"]: participant_conditions(about).get("age") for about in people.values() if "age" in about}
    if unread := sorted(age for age, number in ages.items() if number is None):
        remarks.append(
            f"ages in participants.tsv that are no numbers ({len(unread)}, such as {unread[0]}) are taken as unknown"
        )
    if beyond := sorted(
        age for age, number in ages.items() if number is not None and not 0 <= float(number) <= _OLDEST
    ):
        remarks.append(f"participants.tsv has ages of nobody, such as {beyond[0]}: leave empty what is unknown")
    for column in ("sex", "group"):
        spelt: dict[str, set[str]] = defaultdict(set)
        for value in {about.get(column, "") for about in people.values()}:
            spelt[value.casefold()].add(value)
        if twins := [sorted(values) for values in spelt.values() if len(values) > 1]:
            remarks.append(
                f"participants.tsv writes one {column} in several ways ({' and '.join(twins[0])}): they count as different"
            )
    return remarks


def _names(subject: str) -> tuple[str, ...]:
    bare = subject.removeprefix("sub-")
    return (subject, bare, f"sub-{bare}") if subject else ()


def participant_conditions(about: Mapping[str, str]) -> dict[str, float | str]:
    """A participant's values as conditions that a training can declare: ``age`` as a number, everything else as text.

    An age that is no number, such as the ``89+`` by which BIDS hides high ages, is left out: it is unknown.
    """
    found: dict[str, float | str] = {name: value for name, value in about.items() if name != "age"}
    with suppress(KeyError, ValueError):
        age = float(about["age"])
        if math.isfinite(age):
            found["age"] = age
    return found


def read_participants(tables: Iterable[Path]) -> dict[str, dict[str, str]]:
    """``participant_id``, as the table has it -> its age, sex and group, as far as they are known.

    Columns may be written in upper or lower case.

    Raises:
        ValueError: a table that is no text, or has no ``participant_id``, or one participant twice and differently.
    """
    people: dict[str, dict[str, str]] = {}
    for table in tables:
        header, *lines = table_lines(table) or [[]]
        columns = [name.lower() for name in header]
        if "participant_id" not in columns:
            raise ValueError(
                f"{table.name}: expected columns separated by tabs, one of them participant_id, got {header}"
            )
        for number, line in enumerate(lines, start=2):
            row = dict(zip(columns, line))  # a short one lacks its last cells
            person = row.get("participant_id", "")
            cells = {key: row.get(key, "") for key in CARRIED}
            known = {key: value for key, value in cells.items() if value.lower() not in _MISSING}
            if people.setdefault(person, known) != known:
                raise ValueError(f"{table.name}, line {number}: a participant is listed twice with different values")
    people.pop("", None)
    return people
