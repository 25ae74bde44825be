"""One page of each kind, made of toy runs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from replay_toys import ToyPipeline, write_toy_bag
from toy_world import ADAPTED, PLACES, ToyBenchmark, ToySpec, ToySubject, family_of

from semla_ros import Library
from semla_ros.lab.evaluation.aggregate import Evaluation, as_json
from semla_ros.lab.evaluation.protocol import Plan, run
from semla_ros.lab.evaluation.variants import choose_variants
from semla_ros.lab.replay import many
from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.run import ReplayOptions, replay_bag
from semla_ros.lab.report.embedding_map import Scenery
from semla_ros.lab.report.evaluation_page import write_html
from semla_ros.lab.report.many_page import write_many_report


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def results(evaluation: Evaluation) -> dict:
    return {**as_json(evaluation), "subject": {"model": "<toy>"}}


@pytest.fixture(scope="session")
def evaluation_page(evaluation: Evaluation, results: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenery = Scenery(
        points=evaluation.embeddings,
        centroids=dict(zip(ADAPTED, ToySubject().centroids, strict=True)),
        families={name: family_of(name) for name in PLACES},
    )
    path = tmp_path_factory.mktemp("evaluation") / "deep" / "report.html"
    write_html(results, path, scenery=scenery, command="semla evaluate --seeds 0 1")
    return path


def replay_toy(folder: Path, *, has_truth: bool = True, compare: str = "base,semla,oracle:fog") -> Path:
    bag = write_toy_bag(folder / "<b>bag & co", frames=80, has_truth=has_truth)
    options = ReplayOptions(compare=parse_variants(compare), propose_adapter=True, with_bag=False)
    replay_bag(bag, folder / "out", options, load=ToyPipeline)
    return folder / "out" / "report.html"


@pytest.fixture(scope="session")
def replay_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replay_toy(tmp_path_factory.mktemp("replay"))


@pytest.fixture(scope="session")
def replay_page_without_truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replay_toy(tmp_path_factory.mktemp("replay"), has_truth=False, compare="base,semla")


@pytest.fixture(scope="session")
def many_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    bags = [write_toy_bag(folder / "bags" / name, frames=24) for name in ("monday", "tuesday")]
    options = ReplayOptions(compare=parse_variants("base,semla"), with_bag=False, propose_adapter=True)
    tasks = many.make_tasks(bags, folder / "out", options)
    for task in tasks:
        replay_bag(task.bag, task.out, task.options, load=ToyPipeline)
    results = [many.TaskResult(tasks[0].bag), many.TaskResult(tasks[1].bag, error="<gone>")]
    write_many_report(folder / "out" / "report.html", many.merge(tasks, results))
    return folder / "out" / "report.html"


def written_library_report(folder: Path, kind: str) -> Path:
    """Of the shipped library and an image of nothing with a long name, without looking at it by the encoder."""
    library = Library()
    encoder = SimpleNamespace(id=library._inner.manifest.encoder.id, embed=lambda _: library._inner.centroids[0] + 3)
    vars(library)["_encoder"] = encoder
    image = folder / f"{'frankfurt_000000_000294_leftImg8bit_' * 3}.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(image)
    report = library.map(image, image) if kind == "map" else library.explain(image)
    return report.save(folder / f"{kind}.html")


@pytest.fixture(scope="session")
def map_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_library_report(tmp_path_factory.mktemp("map"), "map")


@pytest.fixture(scope="session")
def why_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_library_report(tmp_path_factory.mktemp("why"), "why")
