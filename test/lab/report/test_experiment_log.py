"""Losses and figures in TensorBoard (for real), Weights & Biases and MLflow (offline), where they are installed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from semla_ros.cli import main
from semla_ros.errors import ConfigError
from semla_ros.lab.report.experiment_log import PACKAGES, experiment_log, log_scalars
from semla_ros.lab.report.progress import training_progress


def test_without_a_log_nothing_is_told_and_nothing_imported(tmp_path: Path) -> None:
    with experiment_log("", tmp_path, "run", {}):
        log_scalars({"loss": 1.0}, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_missing_package_is_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if kind == "tensorboard" else kind, None)
    with pytest.raises(ConfigError, match=f"pip install {PACKAGES[kind]}"), experiment_log(kind, tmp_path, "run", {}):
        pass


def test_an_error_in_the_run_ends_the_log_and_is_not_called_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    scalars = {"tensorboard": lambda *_: (lambda *_: None, lambda: closed.append(True))}
    monkeypatch.setattr("semla_ros.lab.report.experiment_log._OPEN", scalars)
    with pytest.raises(ValueError, match="of the run"), experiment_log("tensorboard", tmp_path, "run", {}):
        raise ValueError("of the run")
    assert closed == [True]


def events_of(folder: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_has_every_loss_at_its_step_and_the_settings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    settings = {"rank": 4, "name": "dusk", "empty": ""}
    with (
        experiment_log("tensorboard", tmp_path, "run", settings),
        training_progress("train adapter dusk", 3) as (_, on_step),
    ):
        for step, loss in enumerate((0.9, 0.6, 0.3)):
            on_step(step, loss)
    events = events_of(tmp_path / "run")
    losses = events.Scalars("train adapter dusk/loss")
    assert [(item.step, round(item.value, 6)) for item in losses] == [(0, 0.9), (1, 0.6), (2, 0.3)]
    (text,) = events.Tensors("settings/text_summary")
    assert b"| rank | 4 |" in text.tensor_proto.string_val[0]
    assert b"empty" not in text.tensor_proto.string_val[0]


def test_an_evaluation_is_told_with_the_figures_of_its_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    command = ["evaluate", "--images", "1", "--seeds", "0", "--domains", "old-town-fog", "--variants", "zero_shot"]
    assert main([*command, "--log-to", "tensorboard", "--log-dir", str(tmp_path), "--jobs", "1"]) == 0
    (folder,) = tmp_path.iterdir()
    events = events_of(folder)
    (item,) = events.Scalars("old-town-fog/zero_shot")
    assert 0 < item.value < 1


def test_mlflow_gets_losses_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with experiment_log("mlflow", tmp_path, "run", {"rank": 4}):
        log_scalars({"train adapter dusk/mean loss": 0.5}, 7)
    (run,) = mlflow.search_runs(experiment_names=["semla"], output_format="list")
    assert run.data.params == {"rank": "4"}
    assert run.data.metrics == {"train adapter dusk/mean loss": 0.5}


def test_wandb_gets_losses_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with experiment_log("wandb", tmp_path, "run", {"rank": 4}):
        log_scalars({"train adapter dusk/loss": 0.5}, 7)
    (record,) = tmp_path.rglob("run-*.wandb")
    deadline_s = time.monotonic() + 60  # a process of its own writes it
    while b"train adapter dusk/loss" not in record.read_bytes():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
