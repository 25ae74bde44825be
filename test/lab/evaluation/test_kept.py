"""An interrupted evaluation goes on where it stopped, and gives the figures of one that was not."""

from pathlib import Path

import pytest
from toy_world import ToyBenchmark, ToySpec, ToySubject

from semla_ros.lab.evaluation.aggregate import Evaluation, as_json
from semla_ros.lab.evaluation.kept import KeptResults
from semla_ros.lab.evaluation.protocol import Plan, make_plan, run
from semla_ros.lab.evaluation.variants import choose_variants


def plan_of(*variants: str) -> Plan:
    return make_plan(
        ToyBenchmark(),
        ["a-fog", "b-fog"],
        choose_variants(variants),
        domains=["a-fog", "clear"],
        seeds=[0, 1],
        images=7,
    )


class Interrupted(ToySubject):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def set_classes(self, names: tuple[str, ...]) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        super().set_classes(names)


def kept_in(folder: Path, plan: Plan, subject: str = "toy", files: tuple[Path, ...] = ()) -> KeptResults:
    return KeptResults(folder, plan, subject, files)


def figures(plan: Plan, subject: ToySubject, kept: KeptResults | None = None) -> dict:
    return as_json(Evaluation.collect(plan, run(plan, ToySpec(), subject=subject, kept=kept)))


def test_a_run_interrupted_after_each_job_equals_one_that_was_not(tmp_path: Path) -> None:
    plan = plan_of("paper")
    whole = figures(plan, ToySubject())
    jobs = len(list(plan.jobs()))
    for _ in range(jobs - 1):
        with pytest.raises(KeyboardInterrupt):
            figures(plan, Interrupted(after=1), kept_in(tmp_path, plan))
    for left in (1, 0):
        assert figures(plan, Interrupted(after=left), kept_in(tmp_path, plan)) == whole


def test_results_of_other_options_files_and_images_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    plan, files = plan_of("semla"), (tmp_path / "weights",)
    kept = kept_in(tmp_path / "part", plan, files=files)
    figures(plan, ToySubject(), kept)
    (job, *_) = plan.jobs()
    assert kept.read(job) is not None
    assert kept_in(tmp_path / "part", plan_of("semla", "uniform"), files=files).read(job) is None
    assert kept_in(tmp_path / "part", plan, "another", files).read(job) is None
    (tmp_path / "weights").write_bytes(b"22")
    assert kept_in(tmp_path / "part", plan, files=files).read(job) is None


def test_a_file_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    plan = plan_of("semla")
    whole = figures(plan, ToySubject(), kept_in(tmp_path, plan))
    for path in sorted(tmp_path.iterdir())[:2]:
        path.write_bytes(path.read_bytes()[:-40])
    assert figures(plan, ToySubject(), kept_in(tmp_path, plan)) == whole
