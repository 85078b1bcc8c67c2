from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from medical_diffusion_components import __version__
from medical_diffusion_components.files import files_below, folder_setting, versions


def test_links_are_followed_and_loops_end(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    for place in (root / "b", store / "deep", root / ".hidden"):
        place.mkdir(parents=True)
        (place / "x").touch()
    (root / "a").symlink_to(store)
    (store / "loop").symlink_to(root)
    (root / "gone").symlink_to(root / "nowhere")
    found = files_below(root)
    names = [[path.relative_to(root).as_posix() for path in paths] for paths in found]
    assert names == [["a/deep/x", "b/x"], [".hidden"], ["gone"], ["a/loop"], []]


def test_a_link_into_the_folder_itself_does_not_rename_what_it_points_to(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "x").touch()
    (tmp_path / "a").symlink_to(tmp_path / "z")
    found = files_below(tmp_path)
    assert found.files == [tmp_path / "z" / "x"] and found.seen_folders == [tmp_path / "a"]


def test_a_folder_setting_is_a_path_or_explained():
    assert folder_setting("raw_dir", "~/x") == Path.home() / "x"
    with pytest.raises(ValueError, match=r"--raw_dir was read as 20231101.*--raw_dir \./20231101"):
        folder_setting("raw_dir", 20231101)


def test_a_checkout_that_is_not_installed_has_a_version_and_says_so(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "medical-diffusion-bundles":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr("medical_diffusion_components.files.version", version)
    assert versions()["medical-diffusion-bundles"] == f"{__version__} (not installed)"
    assert versions()["torch"] == real("torch")
