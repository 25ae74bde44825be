"""Many bags: found, replayed on several cores or on Ray, resumed, merged the same way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from replay_toys import write_toy_bag

from semla_ros.config import SemlaConfig
from semla_ros.errors import BagError, ConfigError
from semla_ros.lab import tasks as tasks_module
from semla_ros.lab.replay import many as replay_many
from semla_ros.lab.replay import run as replay
from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.many import TaskResult, find_bags, make_tasks, merge, run_task, run_tasks
from semla_ros.lab.replay.run import ReplayOptions
from semla_ros.lab.report.many_page import write_many_report
from semla_ros.lab.tasks import Done

OPTIONS = ReplayOptions(compare=parse_variants("base,semla"), with_bag=False, with_report=False, propose_adapter=True)


@pytest.fixture
def bags(tmp_path: Path) -> list[Path]:
    for name, frames in (("monday", 24), ("tuesday", 12), ("friday", 16)):
        write_toy_bag(tmp_path / "bags" / name, frames=frames)
    return find_bags([tmp_path / "bags"])


@pytest.fixture(autouse=True)
def toy_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that run in this process use the toy pipeline."""
    from replay_toys import ToyPipeline

    def run(bag: Path, out: Path, options: ReplayOptions) -> dict[str, object]:
        return replay.replay_bag(bag, out, options, load=ToyPipeline)

    monkeypatch.setattr(replay_many, "replay_bag", run)
    monkeypatch.setattr(tasks_module, "_on_cores", lambda work, tasks, jobs: (Done(task, work(task)) for task in tasks))


def test_bags_are_found_below_a_folder_in_a_fixed_order(bags: list[Path], tmp_path: Path) -> None:
    assert [bag.name for bag in bags] == ["friday", "monday", "tuesday"]
    assert find_bags([bags[1]]) == [bags[1]]
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "empty", "none below"), (tmp_path / "absent", "no such file")):
        with pytest.raises(BagError, match=words):
            find_bags([path])
        assert find_bags([path, *bags]) == [path, *bags], "of several it fails by its name, and the others go on"


def test_the_results_of_an_earlier_replay_are_no_bags(bags: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "bags" / "out"
    tasks = make_tasks(bags, out, replace(OPTIONS, with_bag=True))
    run_tasks(tasks)
    assert (out / "monday" / "masks" / "metadata.yaml").is_file()
    assert find_bags([tmp_path / "bags"]) == bags
    assert find_bags([out / "monday" / "masks"]) == [out / "monday" / "masks"], "asked for by name"


def test_results_of_all_bags_are_pooled(bags: list[Path], tmp_path: Path) -> None:
    tasks = make_tasks(bags, tmp_path / "out", OPTIONS)
    merged = merge(tasks, run_tasks(tasks))
    assert merged["complete"]
    assert (merged["primary"], merged["reference"]) == ("semla", "base")
    assert merged["frames"] == 52
    assert [entry["frames"] for entry in merged["bags"]] == [16, 24, 12]
    semla, base = merged["variants"]["semla"], merged["variants"]["base"]
    assert semla["frames"] == semla["frames_with_truth"] == 52
    per_bag = [entry["miou"]["semla"] for entry in merged["bags"]]
    assert min(per_bag) < semla["miou"] < max(per_bag)
    assert semla["shifted_gain_over_base"] == pytest.approx(semla["shifted_miou"] - base["shifted_miou"], abs=1e-6)
    assert len(merged["worklist"]) == 2
    assert merged["worklist"][0]["bag"].endswith("monday")
    write_many_report(tmp_path / "out" / "report.html", merged)
    html = (tmp_path / "out" / "report.html").read_text()
    assert all(bag.name in html for bag in bags)


def test_a_second_run_only_does_what_is_missing(bags: list[Path], tmp_path: Path) -> None:
    tasks = make_tasks(bags, tmp_path / "out", OPTIONS)
    first = merge(tasks, run_tasks(tasks))
    (tasks[1].out / "summary.json").unlink()
    ran: list[str] = []

    def note(done: int, total: int, latest: TaskResult | None) -> None:
        if latest is not None:
            ran.append(latest.bag.name)

    assert merge(tasks, run_tasks(tasks, progress=note)) == first
    assert ran == ["monday"]
    other = make_tasks(bags, tmp_path / "out", ReplayOptions(compare=parse_variants("base")))
    ran.clear()
    run_tasks(other, progress=note)
    assert ran == ["friday", "monday", "tuesday"], "other options are another replay"


def test_a_broken_bag_is_reported_and_the_others_go_on(bags: list[Path], tmp_path: Path) -> None:
    next(bags[1].glob("*.mcap")).write_bytes(b"no bag at all")
    tasks = make_tasks(bags, tmp_path / "out", OPTIONS)
    results = run_tasks(tasks)
    assert [bool(result.error) for result in results] == [False, True, False]
    merged = merge(tasks, results)
    assert not merged["complete"]
    assert merged["frames"] == 28
    assert "monday" in merged["bags"][1]["error"]


def test_bags_of_one_name_get_folders_of_their_own(tmp_path: Path) -> None:
    a = write_toy_bag(tmp_path / "a" / "drive", frames=2)
    b = write_toy_bag(tmp_path / "b" / "drive", frames=2)
    assert [task.out.name for task in make_tasks([a, b], tmp_path, OPTIONS)] == ["drive", "drive-2"]


def test_results_come_back_from_a_worker_without_the_shared_folder(bags: list[Path], tmp_path: Path) -> None:
    (task,) = make_tasks(bags[:1], tmp_path / "out", OPTIONS)
    result, archive = tasks_module.run_on_worker(run_task, task, tmp_path / "no-such-marker")
    assert not result.error
    assert not task.out.exists()
    tasks_module.unpack(archive, task.out)
    summary = json.loads((task.out / "summary.json").read_text())
    assert (summary["frames"], summary["request"]) == (16, task.options.request)


def test_a_cluster_that_does_not_answer_is_one_clear_line(
    bags: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs ray: the extra ray")

    def refuse(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    tasks = make_tasks(bags, tmp_path / "out", OPTIONS)
    with pytest.raises(ConfigError, match=r"--ray auto: no Ray cluster answers there \(Could not find any"):
        run_tasks(tasks, ray_address="auto")


def test_threads_never_differ_between_machines(bags: list[Path], tmp_path: Path) -> None:
    options = ReplayOptions(config=SemlaConfig())
    assert {task.options.config.inference.threads for task in make_tasks(bags, tmp_path, options)} == {1}
