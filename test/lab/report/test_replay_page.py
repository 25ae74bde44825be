"""The report opened in a real browser: nothing complains, the charts are drawn, the frames can be walked through."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless_browser import Page, find_chromium
from replay_toys import ToyPipeline, write_toy_bag

from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.run import ReplayOptions, replay_bag

READY = "document.body?.dataset.ready === 'yes'"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium found and tools/ensure-chromium could not install one")
    with Page(program) as page:
        yield page


def make_report(folder: Path, *, has_truth: bool = True, compare: str = "base,semla,oracle:fog") -> Path:
    bag = write_toy_bag(folder / "<b>bag & co", frames=80, has_truth=has_truth)
    options = ReplayOptions(compare=parse_variants(compare), propose_adapter=True, with_bag=False)
    replay_bag(bag, folder / "out", options, load=ToyPipeline)
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_report(tmp_path_factory.mktemp("report"))


def test_the_report_opens_without_a_complaint_and_without_the_network(page: Page, report: Path) -> None:
    page.open(report, READY)
    assert page.complaints == []
    assert page.evaluate("document.querySelectorAll('script[src], link[rel=stylesheet]').length") == 0
    assert page.evaluate("document.querySelector('h1').textContent").startswith("Adapting helped: semla")
    assert page.evaluate("document.querySelector('.where b').textContent") == "<b>bag & co"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out sideways"


def test_every_chart_is_drawn(page: Page, report: Path) -> None:
    page.open(report, READY)
    drawn = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.chart')]"
        ".map(c => [c.id, c.querySelectorAll('path').length]))"
    )
    assert drawn["chart-miou"] == drawn["chart-confidence"] == drawn["chart-flicker"] == drawn["chart-latency"] == 3
    assert drawn["chart-drift"] == 1
    adapters = page.evaluate(
        "[...document.querySelectorAll('#chart-weights path[data-adapter]')].map(p => p.dataset.adapter)"
    )
    assert sorted(adapters) == ["base model", "clear", "fog", "night"]
    assert page.evaluate("document.querySelectorAll('#chart-weights .fusion').length") == 3
    assert page.evaluate(
        "[...document.querySelectorAll('.chart path')].every(p => !/NaN|undefined/.test(p.getAttribute('d')))"
    )


def test_a_curve_can_be_hidden_and_read_at_a_moment(page: Page, report: Path) -> None:
    page.open(report, READY)
    page.evaluate("document.querySelector('#chart-miou .legend button').click()")
    assert (
        page.evaluate("document.querySelector('#chart-miou path[data-variant=base]').getAttribute('visibility')")
        == "hidden"
    )
    page.evaluate(
        "(() => { const box = document.getElementById('chart-miou'), b = box.getBoundingClientRect();"
        " box.dispatchEvent(new MouseEvent('mousemove', {clientX: b.left + b.width / 2, clientY: b.top + 50})); })()"
    )
    tip = page.evaluate("document.querySelector('#chart-miou .tip').textContent")
    assert "semla 0." in tip
    assert not page.evaluate("document.querySelector('#chart-miou .tip').hidden")


def test_the_worst_frames_can_be_walked_through_and_explained(page: Page, report: Path) -> None:
    page.open(report, READY)
    categories = page.evaluate("[...document.querySelectorAll('#categories button')].map(b => b.textContent)")
    assert categories[0].startswith("Worst frames")
    first = page.evaluate("document.getElementById('frame-view').dataset.frame")
    captions = page.evaluate("[...document.querySelectorAll('.panel figcaption b')].map(b => b.textContent)")
    assert captions == ["camera", "truth", "base", "semla", "oracle:fog"]
    page.wait("[...document.querySelectorAll('.panel img')].every(i => i.complete && i.naturalWidth > 0)")
    page.evaluate("document.getElementById('next').click()")
    page.wait(f"document.getElementById('frame-view').dataset.frame !== '{first}'")
    assert page.evaluate("document.querySelectorAll('.mixrow').length") >= 3
    page.evaluate("document.getElementById('show-errors').click()")
    page.wait("document.querySelectorAll('.panel canvas').length === 3")
    page.evaluate("document.querySelectorAll('#categories button')[1].click()")
    page.wait("document.getElementById('category-note').textContent.includes('cost') || "
              "document.getElementById('category-note').textContent.includes('gained')")  # fmt: skip
    assert page.complaints == []


def test_a_report_without_truth_leads_to_where_variants_disagree(page: Page, tmp_path: Path) -> None:
    page.open(make_report(tmp_path, has_truth=False, compare="base,semla"), READY)
    categories = page.evaluate("[...document.querySelectorAll('#categories button')].map(b => b.textContent)")
    assert [text.split(" (")[0] for text in categories] == ["Least confident", "Largest disagreement", "Flicker"]
    assert page.evaluate("document.getElementById('chart-miou')") is None
    assert "volcano" in page.evaluate("document.body.textContent")
    assert page.complaints == []
