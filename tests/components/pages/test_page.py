"""The page of an evaluation: what is in the file, and what a browser makes of it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medical_diffusion_components.pages import Gallery, PageCase, PageVolume, strip_plot, write_page

SIZE, SPACING, AXCODES = (6, 10, 8), (1.0, 0.5, 2.0), "LSA"  # left, superior, anterior
CELL = {"value": 3.0, "se": 0.5, "floor": 1.0, "floor_sd": 0.25, "floor_n": 4, "n": 8, "m": 8, "better": "lower"}
REPORT = {
    "protocol": "1",
    "n": {"synthetic": 8, "reference": 8},
    "weights_sha256": "abc",
    "spaces": {"anatomy": {"what": "block averages", "counts": True, "dims": 3}},
    "what_rows_are": {"synthetic": "synthetic against held-out volumes"},
    "rows": {"synthetic": {"anatomy": {"kid": CELL}, "volumes": {"ms_ssim": {**CELL, "real": 2.0}}}},
    "warnings": ["few <volumes>"],
}


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, SIZE).astype(np.float32)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    cases = [
        PageCase(f"case {n}", [PageVolume("sample", volume(n)), PageVolume("training", volume(0))], f"text {n}", n == 2)
        for n in range(3)
    ]
    curves = {"loss": ([0, 1, 2], [3.0, float("nan"), 1.0])}
    galleries = [Gallery("Samples", "some", cases), Gallery("Nothing", "", [])]
    return write_page(
        tmp_path / "page.html",
        "A <title>",
        ["Good & bad."],
        REPORT,
        galleries,
        SPACING,
        AXCODES,
        curves,
        ["No patients."],
    )


def test_a_volume_is_stored_once_in_bytes_turned_to_the_right_the_front_and_up(page: Path) -> None:
    text = page.read_text()
    packed = dict(re.findall(r'<script type="text/plain" id="(\w+)">([\w+/=]+)</script>', text))
    assert len(packed) == 3, "the training volume is in three cases and is sample 0 as well"
    cases = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.S).group(1))
    assert [case["title"] for case in cases] == ["case 0", "case 1", "case 2"]
    shown = cases[1]["volumes"][0]
    assert shown["shape"] == [6, 8, 10] and shown["spacing"] == [1.0, 2.0, 0.5]
    found = np.frombuffer(gzip.decompress(base64.b64decode(packed[shown["id"]])), np.uint8).reshape(shown["shape"])
    expected = np.rint((volume(1) + 1) / 2 * 255)[::-1].transpose(0, 2, 1)
    np.testing.assert_array_equal(found, expected)


def test_the_page_asks_for_nothing_and_shows_no_markup_of_its_input(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text) and "http" not in text and "@import" not in text
    assert "A &lt;title&gt;" in text and "few &lt;volumes&gt;" in text and "Good &amp; bad." in text
    assert "No patients." in text and "Nothing" not in text
    assert "weights sha256" in text and "abc" in text


def test_the_same_input_gives_the_same_bytes(page: Path, tmp_path: Path) -> None:
    again = write_page(
        tmp_path / "again.html",
        "A <title>",
        ["Good & bad."],
        REPORT,
        [
            Gallery(
                "Samples",
                "some",
                [
                    PageCase(
                        f"case {n}",
                        [PageVolume("sample", volume(n)), PageVolume("training", volume(0))],
                        f"text {n}",
                        n == 2,
                    )
                    for n in range(3)
                ],
            )
        ],
        SPACING,
        AXCODES,
        {"loss": ([0, 1, 2], [3.0, float("nan"), 1.0])},
        ["No patients."],
    )
    assert again.read_bytes() == page.read_bytes()


def test_dots_and_bands_lie_where_the_numbers_say() -> None:
    other = {**CELL, "value": 1.0, "se": 0.0}
    figure = strip_plot("kid", {"synthetic": CELL, "training": other})
    dots = [float(x) for x in re.findall(r'cx="([\d.]+)"', figure)]
    left, width = map(float, re.search(r'class="floor" x="([\d.]+)" y="0" width="([\d.]+)"', figure).groups())
    per_unit = (dots[0] - dots[1]) / 2
    assert width == pytest.approx(per_unit, rel=0.02), "two standard deviations of 0.25 to either side"
    assert left + width / 2 == pytest.approx(dots[1], abs=0.2), "the floor's middle is 1"
    assert "lower is better" in figure and "3 ± 0.5" in figure


def test_numbers_that_depend_on_n_are_drawn_at_the_number_of_the_floor() -> None:
    assert "9 ± 0.5" in strip_plot("fd", {"synthetic": {**CELL, "at_floor_n": 9.0}})


@pytest.mark.parametrize("missing", ["value", "se", "floor", "floor_sd"])
@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_row_that_lacks_a_number_is_left_out(missing: str, nothing: float | None) -> None:
    lacking = {**CELL, missing: nothing}
    assert strip_plot("fd", {"synthetic": lacking}) == ""
    assert strip_plot("fd", {"synthetic": lacking, "training": CELL}) == strip_plot("fd", {"training": CELL})


def test_a_curve_without_two_finite_points_is_left_out(tmp_path: Path) -> None:
    curves = {"broken": ([0, 1, 2], [float("nan")] * 3), "short": ([0, 1], [1.0, float("inf")])}
    text = write_page(tmp_path / "page.html", "A title", [], REPORT, [], curves=curves).read_text()
    assert "broken" not in text and "short" not in text and "<h2>Training</h2>" not in text


@pytest.fixture
def browser_page(page: Path) -> Iterator[tuple]:
    """The page in Chromium, with the requests that it made."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    requests: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 900, "height": 900})
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_selector(".viewer[data-shown='0']")
        yield tab, requests
        browser.close()


PIXELS = """canvas => Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"""


@pytest.mark.slow
def test_in_a_browser_one_scrolls_changes_the_window_and_the_case_without_any_request(browser_page: tuple) -> None:
    tab, requests = browser_page
    canvas = tab.locator("canvas").nth(2)  # axial
    first = canvas.evaluate(PIXELS)
    assert max(first[0::4]) > 100, "the picture is not black"
    # the axial slice through the middle, the front at the top, without the cross
    data = np.rint((volume(0) + 1) / 2 * 255)[::-1].transpose(0, 2, 1)
    seen = np.array(first).reshape(8, 6, 4)[:, :, 0]
    expected = data[:, :, 5].T[::-1]
    cross = np.zeros((8, 6), bool)
    cross[4], cross[:, 3] = True, True
    np.testing.assert_allclose(seen[~cross], expected[~cross], atol=1)

    canvas.hover()
    tab.mouse.wheel(0, 120)
    assert canvas.evaluate(PIXELS) != first
    window = tab.locator(".viewer").get_attribute("data-window")
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + 10, box["y"] + 10)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 50, box["y"] + 30)
    tab.mouse.up()
    assert tab.locator(".viewer").get_attribute("data-window") != window
    canvas.focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_selector(".viewer[data-shown='1']")
    assert tab.locator(".viewer .text").text_content() == "text 1"
    assert len(requests) == 1, "the file itself and nothing else"


@pytest.mark.slow
def test_in_a_browser_a_difference_is_grey_where_two_volumes_are_the_same(browser_page: tuple) -> None:
    tab, _ = browser_page
    tab.locator(".next").click()
    tab.locator(".next").click()
    tab.wait_for_selector(".viewer[data-shown='2']")
    assert tab.locator(".volume h4").all_text_contents() == ["sample", "training", "difference"]
    one, other, difference = (
        np.array(tab.locator("canvas").nth(3 * n + 2).evaluate(PIXELS), float)[0::4].reshape(8, 6) for n in range(3)
    )
    inside = np.ones((8, 6), bool)
    inside[4], inside[:, 3] = False, False  # the cross
    np.testing.assert_allclose(difference[inside], (127.5 + (one - other) / 2)[inside], atol=1.5)
    assert np.ptp(difference[inside]) > 100


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_is_wider_than_the_screen(browser_page: tuple, width: int) -> None:
    tab, _ = browser_page
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
