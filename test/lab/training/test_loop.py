"""The optimisation loop: it learns, resumes to the very same result, and stops on a diverging loss."""

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from semla_ros.errors import ConfigError, TrainingError
from semla_ros.lab.training.loop import LoopConfig, Run, run_loop, schedule_factor

CONFIG = LoopConfig(steps=60, batch_size=16, learning_rate=0.15, warmup_steps=4, weight_decay=0.0, bfloat16=False)
CPU = torch.device("cpu")
# In a process of its own: where tests run in several, theirs may not be the main thread.
SIGNALLED = """
import os, signal, sys
from pathlib import Path
from test_loop import CONFIG, regression

number = int(sys.argv[2])
handler = signal.getsignal(number)
regression(CONFIG, Path(sys.argv[1]), stop_at=17, stop=lambda: os.kill(os.getpid(), number))
assert signal.getsignal(number) is handler
"""


def stop() -> None:
    raise KeyboardInterrupt


def regression(
    config: LoopConfig,
    state_file: Path | None = None,
    stop_at: int | None = None,
    stop: Callable[[], object] = stop,
    **run: object,
) -> tuple[nn.Linear, list[float]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def step_loss(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(config.batch_size, 3, generator=generator)
        return (model(x)[:, 0] - x @ torch.tensor([1.0, -2.0, 0.5])).square().mean()

    def interrupt(step: int, _loss: float) -> None:
        if step == stop_at:
            stop()

    losses: list[float] = []
    try:
        losses = run_loop(
            {"model": model}, [{"params": model.parameters()}], step_loss, config,
            Run(device=CPU, state_file=state_file, on_step=interrupt, **run), checkpoint_every_s=0.0,
        )  # fmt: skip
    except KeyboardInterrupt:
        assert stop_at is not None
    return model, losses


def test_the_loss_falls() -> None:
    _, losses = regression(CONFIG)
    assert len(losses) == CONFIG.steps
    assert sum(losses[-5:]) < 0.05 * sum(losses[:5])


def test_an_interrupted_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = regression(CONFIG)
    state = tmp_path / "state.pt"
    regression(CONFIG, state, stop_at=17)
    assert state.is_file()
    resumed, losses = regression(CONFIG, state)
    assert 0 < len(losses) < CONFIG.steps
    assert torch.equal(whole.weight, resumed.weight)


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    first, _ = regression(CONFIG, state)
    second, losses = regression(CONFIG, state)
    assert losses == []
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_with_nothing_lost(tmp_path: Path, number: signal.Signals) -> None:
    whole, _ = regression(CONFIG)
    state = tmp_path / "state.pt"
    subprocess.run([sys.executable, "-c", SIGNALLED, state, str(int(number))], cwd=Path(__file__).parent, check=True)
    resumed, losses = regression(CONFIG, state)
    assert len(losses) == CONFIG.steps - 18
    assert torch.equal(whole.weight, resumed.weight)


def test_the_running_mean_and_the_best_of_a_run_survive_an_interrupt(tmp_path: Path) -> None:
    config = replace(CONFIG, average=0.9)
    seen: list[float] = []

    def score(modules: dict[str, nn.Module]) -> float:
        seen.append(float(modules["model"].weight.detach().sum()))
        return seen[-1]

    whole, _ = regression(config, validate=score, validations=4)
    scores = list(seen)
    assert len(scores) == 4
    assert float(whole.weight.detach().sum()) == max(scores)
    plain, _ = regression(CONFIG)
    mean, _ = regression(config)
    assert not torch.equal(plain.weight, mean.weight)
    state = tmp_path / "state.pt"
    regression(config, state, stop_at=41, validate=score, validations=4)
    resumed, _ = regression(config, state, validate=score, validations=4)
    assert seen[4:] == scores
    assert torch.equal(whole.weight, resumed.weight)
    again, _ = regression(config, state, validate=score, validations=4)
    assert torch.equal(whole.weight, again.weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, r"seed 0, not 5"),
        ({"batch_size": 8}, r"batch_size 16, not 8"),
        ({"learning_rate": 0.1}, r"learning_rate 0.15, not 0.1"),
        ({"weight_decay": 0.1}, r"weight_decay 0.0, not 0.1"),
        ({"average": 0.5}, r"average 0.0, not 0.5"),
        ({"steps": 100}, r"a schedule of 60 steps, not 100"),
    ],
)
def test_a_state_of_other_settings_is_refused(tmp_path: Path, change: dict[str, float], words: str) -> None:
    state = tmp_path / "state.pt"
    regression(CONFIG, state)
    with pytest.raises(TrainingError, match=words):
        regression(replace(CONFIG, **change), state)


def test_a_state_of_other_data_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    regression(CONFIG, state, stop_at=3, made_from={"data": "a"})
    with pytest.raises(TrainingError, match="another data"):
        regression(CONFIG, state, made_from={"data": "b"})
    regression(CONFIG, state, made_from={"data": "a"})


def test_a_state_that_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    regression(CONFIG, state, stop_at=3)
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(TrainingError, match=r"state\.pt does not fit this run"):
        regression(CONFIG, state)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step() -> None:
    parameter = nn.Parameter(torch.ones(1))
    module = nn.ParameterList([parameter])
    with pytest.raises(TrainingError, match=r"nan at step 0"):
        run_loop(
            {"m": module}, [{"params": [parameter]}], lambda _: parameter.sum() * float("nan"), CONFIG, Run(device=CPU)
        )


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    factors = [schedule_factor(step, CONFIG) for step in range(CONFIG.steps + 1)]
    assert factors[0] == pytest.approx(CONFIG.warmup_factor)
    assert max(factors) == factors[CONFIG.warmup_steps] == 1.0
    assert factors[-1] == pytest.approx(0.0)


def test_a_restarted_schedule_ends_at_zero_twice_and_the_second_is_lower() -> None:
    config = LoopConfig(steps=100, warmup_steps=5, restart=0.6, restart_factor=0.4)
    factors = [schedule_factor(step, config) for step in range(config.steps + 1)]
    assert factors[:60] == [schedule_factor(step, LoopConfig(steps=60, warmup_steps=5)) for step in range(60)]
    assert factors[59] < 0.01
    assert max(factors[60:]) == factors[65] == pytest.approx(0.4)
    assert factors[-1] == pytest.approx(0.0)


def test_a_run_that_is_lengthened_by_a_restart_goes_on_from_its_end(tmp_path: Path) -> None:
    longer = replace(CONFIG, steps=100, restart=0.6)
    whole, _ = regression(longer)
    state = tmp_path / "state.pt"
    regression(CONFIG, state)
    continued, losses = regression(longer, state)
    assert len(losses) == 40
    assert torch.equal(whole.weight, continued.weight)


@pytest.mark.parametrize("restart", [-0.1, 1.0])
def test_a_restart_outside_the_run_is_refused(restart: float) -> None:
    with pytest.raises(ConfigError, match=r"'restart' must be a share"):
        LoopConfig(steps=10, restart=restart)
