"""Every report page in a browser, by axe-core and by its screenshot: light and dark, on a desk and on a phone."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from headless_browser import Page, find_chromium
from PIL import Image

from semla_ros.lab.report.palette import DARK, LIGHT, from_hex

PAGES = ("evaluation_page", "replay_page", "replay_page_without_truth", "many_page", "map_page", "why_page")
READY = "document.readyState === 'complete'"
SCHEMES = {"light": LIGHT, "dark": DARK}
PHONE = 400  # narrower than most


@pytest.fixture(params=PAGES)
def path(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module", params=[1280, PHONE])
def browser(request: pytest.FixtureRequest) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium found and tools/ensure-chromium could not install one")
    with Page(program, width=request.param) as page:
        yield page


@pytest.fixture(scope="module")
def axe() -> str:
    """The program of axe-core; the package that brings it is not imported, for it wants a driver of its own."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe-core (pip install --no-deps axe-playwright-python) is not installed")
    return (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


def test_axe_finds_no_serious_fault(browser: Page, axe: str, path: Path) -> None:
    browser.open(path, READY)
    browser.evaluate(axe + ";0")
    for scheme in SCHEMES:
        browser.emulate(color_scheme=scheme)
        faults = browser.evaluate(
            "axe.run().then(found => found.violations.filter(fault => ['serious', 'critical'].includes(fault.impact))"
            ".map(fault => [fault.id, fault.help, fault.nodes.length, fault.nodes[0].html.slice(0, 160)]))"
        )
        assert faults == [], scheme


def test_a_page_fits_the_screen_without_a_complaint_and_has_the_grounds_of_its_scheme(
    browser: Page, path: Path, tmp_path: Path
) -> None:
    browser.complaints.clear()  # axe-core may have had some
    browser.open(path, READY)
    assert browser.complaints == []
    width = browser.evaluate("window.innerWidth")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wide = browser.evaluate(
        "[...document.querySelectorAll('svg text, p, h1, h2, h3, figure, figcaption, li, b, dd')]"
        ".filter(node => !node.closest('.scroll')"
        " && node.getBoundingClientRect().right > window.innerWidth).map(node => node.textContent)"
    )
    assert wide == []
    outside_their_own = browser.evaluate(
        "[...document.querySelectorAll('figcaption, .tile, h1, p, li, dd')].filter(node => node.clientWidth"
        " && node.scrollWidth > node.clientWidth + 1).map(node => node.textContent)"
    )
    assert outside_their_own == []  # a long name covers what stands beside it
    for scheme in SCHEMES:
        browser.emulate(color_scheme=scheme)
        browser.screenshot(tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        assert pixels.shape[1] == width

        def share(colour: str, pixels: np.ndarray = pixels) -> float:
            return float((np.abs(pixels - from_hex(colour)).max(axis=2) <= 2).mean())

        own, other = SCHEMES[scheme], SCHEMES["dark" if scheme == "light" else "light"]
        assert share(own["card"]) + share(own["ground"]) > 0.4
        assert share(other["card"]) + share(other["ground"]) < 0.02
        assert share(own["ink"]) > 0.0005
