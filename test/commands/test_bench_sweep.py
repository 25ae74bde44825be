"""The sweep over retrieval settings, on the toy world."""

import json
from pathlib import Path

import pytest
from toy_world import ToyBenchmark, ToySpec, ToySubject

from bench.sweep import Grid, run, setting_name
from semla_ros.config import RetrievalConfig


def test_a_sweep_moves_one_setting_at_a_time_around_the_present_ones() -> None:
    present = RetrievalConfig(temperature=0.3, top_k=3)
    grid = Grid(temperatures=(0.1, 0.3, 1.0), top_ks=(1, 3), distances=("euclidean", "cosine"))
    settings = grid.settings(present)
    assert len(settings) == 1 + 2 + 1 + 1
    assert settings[0] == present
    full = Grid(temperatures=(0.1, 0.3), top_ks=(1, 3), distances=("euclidean",), is_full=True).settings(present)
    assert len({setting_name(item) for item in full}) == len(full) == 4


def test_a_sweep_puts_the_best_leave_one_out_setting_first(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "sweep.json"
    values = ["--temperatures", "0.05", "0.3", "50", "--top-ks", "1", "3", "--distances", "euclidean"]
    sweep = run(
        ["--images", "4", "--workers", "1", "--json", str(path), *values], spec=ToySpec(), benchmark=ToyBenchmark()
    )
    scores = [row["h_mean_without_own"] for row in sweep["settings"]]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert sweep["best"]["temperature"] < 50.0
    present = [row for row in sweep["settings"] if row["is_present"]]
    assert [(row["temperature"], row["top_k"]) for row in present] == [
        (ToySubject.recommended.temperature, ToySubject.recommended.top_k)
    ]
    assert json.loads(path.read_text()) == sweep
    assert "present" in capsys.readouterr().out
