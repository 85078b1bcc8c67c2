"""The README shows what the committed results say, and nothing else."""

from __future__ import annotations

import json
import time

import measuring
import pytest
import table


def test_the_readme_has_the_table_of_the_committed_results():
    text = table.README.read_text()
    assert table.in_readme(text) == text


def test_results_of_two_machines_make_no_table():
    machine = {"processor": "a", "cores": 2}
    with pytest.raises(ValueError, match="expected results of one machine"):
        table.machine_line([{"machine": machine}, {"machine": {**machine, "cores": 4}}])


def test_saved_rows_are_replaced_by_key_and_not_mixed_with_those_of_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)

    def save(machine, bundle, ratio):
        monkeypatch.setattr(measuring, "machine", lambda: machine)
        measuring.save_rows("x", [{"bundle": bundle, "ratio": ratio}], keys=("bundle",))
        return [(row["bundle"], row["ratio"]) for row in json.loads((tmp_path / "x.json").read_text())["rows"]]

    assert save({"cores": 2}, "b", 1) == [("b", 1)]
    assert save({"cores": 2}, "a", 2) == [("a", 2), ("b", 1)]
    assert save({"cores": 2}, "b", 3) == [("a", 2), ("b", 3)]
    assert save({"cores": 4}, "a", 4) == [("a", 4)]


def test_waiting_is_elapsed_and_not_processor_time():
    laps = measuring.Laps()
    time.sleep(0.2)
    laps.lap()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        sum(range(1000))
    laps.lap()
    waited, computed = laps.laps
    assert waited["seconds"] >= 0.2 and waited["user"] < 0.1
    assert computed["user"] > 0.1
    assert laps.medians(1) == computed
