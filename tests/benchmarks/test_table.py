"""The README shows what the committed results say, and nothing else."""

from __future__ import annotations

import pytest
import table


def test_the_readme_has_the_table_of_the_committed_results():
    text = table.README.read_text()
    assert table.in_readme(text) == text


def test_results_of_two_machines_make_no_table():
    machine = {"processor": "a", "cores": 2}
    with pytest.raises(ValueError, match="expected results of one machine"):
        table.machine_line([{"machine": machine}, {"machine": {**machine, "cores": 4}}])
