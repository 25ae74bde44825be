from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy_world import ADAPTED, ToyBenchmark, ToySpec

from semla_ros.errors import ConfigError
from semla_ros.lab.evaluation.aggregate import Evaluation, as_json
from semla_ros.lab.evaluation.protocol import Plan, run
from semla_ros.lab.evaluation.variants import choose_variants
from semla_ros.lab.report.embedding_map import Scenery, embedding_map
from semla_ros.lab.report.evaluation_page import write_html
from semla_ros.lab.report.evaluation_tables import label, score_rows, terminal_tables


@pytest.fixture
def page(evaluation_page: Path) -> str:
    return evaluation_page.read_text(encoding="utf-8")


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
    assert page.count("<svg") == 4
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


def test_an_own_adapter_is_framed_and_what_did_not_occur_stays_empty(page: str) -> None:
    matrix = page[page.index("<h2>Retrieval confusion matrix") :]
    matrix = matrix[: matrix.index("</table>")]
    assert matrix.count('<td class="own') == len(ADAPTED)
    row = matrix[matrix.index('<th scope="row">a-fog') :]
    assert 'style="--heat-share:100.0%">100</td>' in row[: row.index("</tr>")]


def test_the_best_without_the_own_adapter_is_marked(results: dict) -> None:
    for row in score_rows(results):
        if row.group == "domains":
            best = max(
                value for name, value in row.values.items() if name.endswith("_without_own") or name == "zero_shot"
            )
            assert [name for name in row.values if row.is_best(name)]
            assert all(row.values[name] == best for name in row.values if row.is_best(name))
            assert not row.is_best("oracle")


def test_the_embedding_map_bears_a_single_point_per_domain() -> None:
    points = {"x": np.zeros((1, 5), np.float32), "y": np.ones((1, 5), np.float32), "z": np.eye(5, dtype=np.float32)[:1]}
    scenery = Scenery(points=points, centroids={"x": np.zeros(5)}, families={})
    assert embedding_map(scenery).svg.startswith("<svg")
