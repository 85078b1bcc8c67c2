"""The tutorial notebook runs from its first cell to its last, and what is committed is the output of such a run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
LARGEST = 1.5  # MB
NARROW = ["--base_channels=4", "--norm_groups=4", "--denoiser_channels=32"]  # what training makes, all else uses
# Its commands run in forked processes; tests/bundles/test_commands.py is about those that start anew.
FORKED = f"""
import types
sys.path.insert(0, {str(ROOT / "tests")!r})
import warm_processes
def run(command, **_):
    return warm_processes.python(*command[1:], *({NARROW} if "training" in command else []))
subprocess = types.SimpleNamespace(run=run)
"""
SMALLEST = {"FIRST_STAGE_EPOCHS": 1, "DENOISER_EPOCHS": 1, "VOLUMES": 4, "ENCODER_STEPS": 2}


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_what_is_committed_was_run_in_order_without_an_error(notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    pictures = [output for cell in cells for output in cell.outputs if "image" in str(output.get("data", {}).keys())]
    assert len(pictures) == 5 and NOTEBOOK.stat().st_size < LARGEST * 1e6


def test_outputs_name_no_folder_of_the_machine_that_made_them(notebook: nbformat.NotebookNode) -> None:
    texts = [json.dumps(output) for cell in code_cells(notebook) for output in cell.outputs]
    texts = [re.sub(r'"image/\w+": "[^"]*"', "", text) for text in texts]
    found = [text[:300] for text in texts if re.search(r"(?<![\w./])/(tmp|root|home|usr|opt|mnt)\b", text)]
    assert not found


def test_links_lead_to_pages(notebook: nbformat.NotebookNode) -> None:
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((\w+\.md)\)", text)
    assert len(links) >= 5 and all((ROOT / "docs" / link).is_file() for link in links)


@pytest.mark.slow
def test_it_runs_on_the_smallest_sizes(
    notebook: nbformat.NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = shutil.ignore_patterns("output", "models", "demo")
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles", ignore=without)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in SMALLEST.items():
        cell.source, replaced = re.subn(rf"^{name} = \d+", f"{name} = {value}", cell.source, flags=re.MULTILINE)
        assert replaced == 1
    first, *_ = code_cells(notebook)
    assert "import subprocess" in first.source and "import sys" in first.source
    first.source += FORKED
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    made = tmp_path / "tutorial"
    report = json.loads((made / "prepared" / "report.json").read_text())
    assert len(list((made / "output" / "samples").glob("*.nii.gz"))) == 4
    assert len(list((made / "segmenter" / "segmentations").glob("*_seg.nii.gz"))) == 4
    assert json.loads((made / "models" / "model.json").read_text())["knobs"]["image_size"] == [32, 32, 32]
    assert (made / "output" / "audit" / "audit.md").is_file() and "sub-109" in json.dumps(report)
