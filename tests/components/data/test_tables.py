"""Tables come in the encodings and with the separators that spreadsheets use; another file is refused with what to do."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from medical_diffusion_components.data import Conditions, RequestedConditions
from medical_diffusion_components.data.tables import table_lines
from medical_diffusion_components.preparation.bids import read_participants
from medical_diffusion_components.preparation.conditions_table import read_conditions_table

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with its mark"]
SIGNS = [",", ";", "\t"]


def encoded(text: str, encoding: str) -> bytes:
    return b"\xff\xfe" + text.encode("utf-16-le") if encoding.endswith("mark") else text.encode(encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_reader_takes_every_form(encoding: str, sign: str, end: str, tmp_path: Path) -> None:
    def written(name: str, *rows: tuple[str, ...]) -> Path:
        path = tmp_path / name
        path.write_bytes(encoded(end.join(f" {sign} ".join(row) for row in rows) + end, encoding))
        return path

    table = written("a.csv", ("age", "sex"), ("71.5", "F"), ("64", "n/a"))
    conditions = Conditions({"age": {"range": [50, 90]}, "sex": {"values": ["F", "M"]}})
    asked = RequestedConditions(conditions, str(table), num_volumes=2)
    assert asked.rows == [{"age": 71.5, "sex": "F"}, {"age": 64.0, "sex": None}]
    people = read_participants([written("participants.tsv", ("Participant_ID", "AGE", "sex"), ("sub-1", "71", "F"))])
    assert people == {"sub-1": {"age": "71", "sex": "F"}}
    known = read_conditions_table(written("b.csv", ("case", "age"), ("a", "71.5"), ("ü", "")))
    assert dict(known.rows) == {"a": {"age": 71.5}, "ü": {}}


def test_a_decimal_comma_is_a_number_and_no_category(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("case;age;site\na;71,5;A,B\nb;-0,25;1,2,3\n")
    assert table_lines(tmp_path / "a.csv")[1:] == [["a", "71.5", "A,B"], ["b", "-0.25", "1,2,3"]]
    assert read_conditions_table(tmp_path / "a.csv").rows["a"] == {"age": 71.5, "site": "A,B"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("größe,alter\n1,2\n".encode("cp1252"), "a.csv: expected a text in UTF-8, but byte 2 is not: save it as UTF-8"),
        (b"PK\x03\x04 xlsx", "a.csv: expected a text, got a file of a spreadsheet program: save it as CSV in UTF-8"),
        (gzip.compress(b"age\n1\n", mtime=0), "a.csv: expected a text in UTF-8, but byte 1 is not"),
    ],
)
def test_what_is_no_such_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        RequestedConditions(Conditions({"age": {"range": [50, 90]}}), str(tmp_path / "a.csv"))


def test_a_tab_counts_before_a_semicolon_and_that_before_a_comma(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a;b\tc,d\n1;2\t0,5\n")
    assert table_lines(tmp_path / "a.csv") == [["a;b", "c,d"], ["1;2", "0.5"]]
    (tmp_path / "b.csv").write_text("a,b;c\n1;2,5\n")
    assert table_lines(tmp_path / "b.csv") == [["a,b", "c"], ["1", "2.5"]]
