"""The report in a real browser without a script: charts are drawn, frames open, numbers are those of the summary."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from headless_browser import Page, find_chromium

READY = "document.readyState === 'complete'"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium found: tools/ensure-chromium installs one")
    with Page(program) as page:
        yield page


def texts(browser: Page, selector: str) -> list[str]:
    found: list[str] = browser.evaluate(f"[...document.querySelectorAll({selector!r})].map(node => node.textContent)")
    return found


def test_the_report_says_its_answer_and_where_it_comes_from(browser: Page, replay_page: Path) -> None:
    browser.open(replay_page, READY)
    assert browser.complaints == []
    assert browser.evaluate("document.querySelector('h1').textContent").startswith("Adapting helped: semla")
    assert "<b>bag & co" in browser.evaluate("document.querySelector('header p').textContent")
    assert browser.evaluate("document.title") == "Replay of <b>bag & co"
    semla = json.loads((replay_page.parent / "summary.json").read_text())["variants"]["semla"]
    (strong,) = texts(browser, "tr.strong")
    assert strong.startswith(f"semla{semla['miou']:.3f}+")
    assert semla["mask_sha256"] in texts(browser, "dd")


def test_every_chart_is_drawn(browser: Page, replay_page: Path) -> None:
    browser.open(replay_page, READY)
    drawn = browser.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.chart')].map(chart =>"
        " [chart.querySelector('title').textContent, "
        " [...chart.querySelectorAll('[data-series]')].map(path => path.dataset.series)]))"
    )
    every = ["base", "oracle:fog", "semla"]
    for title in ("mIoU", "Confidence", "Flicker", "Latency"):
        assert sorted(drawn[f"{title} over time"]) == every
        assert drawn[f"{title} over time"][-1] == "semla", "the primary variant is drawn over the others"
    assert drawn["Drift of the mix over time"] == ["semla"]
    assert sorted(drawn["Adapter weights over time"]) == ["base model", "clear", "fog", "night"]
    assert browser.evaluate("document.querySelectorAll('.chart .mark').length") == 3
    paths = browser.evaluate("[...document.querySelectorAll('.chart path')].map(path => path.getAttribute('d'))")
    assert not [path for path in paths if "nan" in path.lower() or "inf" in path.lower()]


def test_the_values_of_a_moment_can_be_read(browser: Page, replay_page: Path) -> None:
    browser.open(replay_page, READY)
    told = texts(browser, ".chart .readings title")
    assert any("fog" in words.splitlines()[0] and "\nsemla 0." in words and "\nbase 0." in words for words in told)
    strip = browser.evaluate(
        "(() => { const box = document.querySelector('.chart').getBoundingClientRect();"
        " return document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2)"
        ".querySelector('title').textContent })()"
    )
    assert "semla" in strip


def test_the_worst_frames_open_with_their_masks_errors_and_mix(browser: Page, replay_page: Path) -> None:
    browser.open(replay_page, READY)
    categories = [
        title for title in texts(browser, "h3") if ("(" in title and "frame" in title.lower()) or "base (" in title
    ]
    assert categories[0].startswith("Worst frames")
    assert browser.evaluate("document.querySelectorAll('details[open]').length") == 1
    captions = texts(browser, "details[open] figcaption")
    assert [caption.split()[0] for caption in captions] == ["camera", "truth", "base", "semla", "oracle:fog"]
    shown = browser.evaluate("[...document.querySelectorAll('details[open] img')].map(image => image.alt)")
    assert [words.split(",")[0] for words in shown[-2:]] == ["Mask of oracle:fog", "Pixels that oracle:fog got wrong"]
    assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    closed = "document.querySelectorAll('details')[1]"
    assert browser.evaluate(f"{closed}.querySelector('.pictures').checkVisibility()") is False
    browser.evaluate(f"{closed}.querySelector('summary').click()")
    assert browser.evaluate(f"{closed}.querySelector('.pictures').checkVisibility()") is True
    assert browser.evaluate(f"{closed}.querySelectorAll('tbody tr').length") >= 3
    assert browser.complaints == []


def test_a_report_without_truth_leads_to_where_variants_disagree(
    browser: Page, replay_page_without_truth: Path
) -> None:
    browser.open(replay_page_without_truth, READY)
    titles = texts(browser, "h3")
    assert [title.split(" (")[0] for title in titles[1:] if title.endswith(")") and "generation" not in title][:3] == [
        "Least confident", "Largest disagreement", "Flicker",
    ]  # fmt: skip
    assert "mIoU over time" not in texts(browser, "h2")
    assert "volcano" in browser.evaluate("document.body.textContent")
    assert browser.complaints == []
