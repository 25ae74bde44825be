import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy_world import ADAPTED, PLACES, ToyBenchmark, ToySpec, ToySubject, family_of

from semla_ros.errors import ConfigError
from semla_ros.lab.evaluation.aggregate import Evaluation, as_json
from semla_ros.lab.evaluation.protocol import Plan, run
from semla_ros.lab.evaluation.variants import choose_variants
from semla_ros.lab.report import figures
from semla_ros.lab.report.evaluation_page import Scenery, label, terminal_tables, write_html


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    benchmark = ToyBenchmark()
    plan = Plan(
        benchmark=benchmark,
        variants=choose_variants(["paper"]),
        domains=benchmark.domain_names,
        unseen=benchmark.unseen_names,
        sources=benchmark.source_names,
        seeds=(0, 1),
        images=4,
    )
    return Evaluation.collect(plan, run(plan, ToySpec()))


@pytest.fixture(scope="module")
def results(evaluation: Evaluation) -> dict:
    return {**as_json(evaluation), "subject": {"model": "<toy>"}}


@pytest.fixture(scope="module")
def page(evaluation: Evaluation, results: dict, tmp_path_factory: pytest.TempPathFactory) -> str:
    scenery = Scenery(
        points=evaluation.embeddings,
        centroids=dict(zip(ADAPTED, ToySubject().centroids, strict=True)),
        families={name: family_of(name) for name in PLACES},
    )
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    write_html(results, path, scenery=scenery, command="semla evaluate --seeds 0 1")
    return path.read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Opening and closing tags must match."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file(page: str) -> None:
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)[^"']*["']""", re.sub(r'xlink:href="#[^"]*"', "", page))
    assert "<script" not in page
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_the_page_is_well_formed(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_the_page_has_every_figure_and_the_figures_of_the_run(page: str, results: dict) -> None:
    for title in (
        "Harmonic mean over the domains",
        "Domain by domain",
        "Unseen combinations",
        "Retrieval confusion matrix",
        "Adapter weights",
        "Embedding map",
        "Class by class",
        "All figures",
    ):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == 7
    assert f"{100 * results['h_mean']['semla_without_own']:.1f}" in page


def test_what_comes_from_files_is_escaped(page: str) -> None:
    assert "&lt;toy&gt;" in page
    assert "<toy>" not in page


def test_the_same_run_gives_the_same_page(results: dict, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        write_html(results, tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_run_of_one_variant_still_makes_a_page(tmp_path: Path) -> None:
    benchmark = ToyBenchmark()
    plan = Plan(benchmark=benchmark, variants=choose_variants(["zero_shot"]), domains=("a-fog",), images=2)
    write_html(as_json(Evaluation.collect(plan, run(plan, ToySpec()))), tmp_path / "page.html")
    assert "Domain by domain" in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_a_config_error(results: dict, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_html(results, tmp_path / "file" / "page.html")


def test_the_terminal_table_shows_each_domain_and_the_h_mean(results: dict) -> None:
    stream = StringIO()
    console = Console(file=stream, width=200)
    for table in terminal_tables(results):
        console.print(table)
    text = stream.getvalue()
    for name in (*results["domains"], *results["unseen"], *results["source"], "h-mean"):
        assert name in text
    assert f"{100 * results['domains']['a-fog']['oracle']:.1f}" in text


def test_variants_have_names_for_people() -> None:
    assert label("semla_without_own") == "SemLA, own left out"
    assert label("semla_no_fade") == "SemLA no fade"
    assert label("zero_shot") == "zero-shot"


def test_a_figure_scales_with_its_place() -> None:
    svg = figures.matrix(["a", "b"], ["a", "c"], np.array([[1.0, 0.0], [np.nan, 0.4]]))
    head = svg[: svg.index(">")]
    assert svg.startswith("<svg")
    assert "viewBox" in head
    assert "max-width" in head
    assert " height=" not in head


def test_the_embedding_map_bears_a_single_point_per_domain() -> None:
    points = {"x": np.zeros((1, 5), np.float32), "y": np.ones((1, 5), np.float32), "z": np.eye(5, dtype=np.float32)[:1]}
    assert figures.embedding_map(points, {"x": np.zeros(5)}, {}).startswith("<svg")
