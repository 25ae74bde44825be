"""Progress bars as a log file shows them."""

from __future__ import annotations

import pytest

from semla_ros.lab.report.progress import training_progress


def test_work_that_a_former_run_had_done_shows_as_complete(capfd: pytest.CaptureFixture[str]) -> None:
    with training_progress("train segmenter", 250):
        pass
    assert "250/250" in capfd.readouterr().out


def test_work_that_failed_shows_how_far_it_came(capfd: pytest.CaptureFixture[str]) -> None:
    def render() -> None:
        with training_progress("render fog", 250) as (advance, _):
            advance(40)
            raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        render()
    assert "40/250" in capfd.readouterr().out


def test_a_log_gets_a_line_about_every_twentieth_of_the_steps(capfd: pytest.CaptureFixture[str]) -> None:
    with training_progress("train adapter fog", 40) as (_, on_step):
        for step in range(40):
            on_step(step, 2.0)
    lines = [line for line in capfd.readouterr().out.splitlines() if "step" in line]
    assert len(lines) == 20
    assert lines[-1] == "train adapter fog: step 40/40, loss 2.000"
