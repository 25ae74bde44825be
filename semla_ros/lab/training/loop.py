"""One resumable optimisation loop for everything that is trained here."""

from __future__ import annotations

import logging
import math
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semla_ros.atomic_files import atomic_file
from semla_ros.errors import ConfigError, TrainingError, counted

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast one model is trained."""

    steps: int  # optimiser steps, >= 1
    batch_size: int = 8  # images per step
    learning_rate: float = 1e-3  # AdamW, at the top of the schedule
    weight_decay: float = 0.01  # AdamW
    warmup_steps: int = 50  # linear from `warmup_factor` times the learning rate
    warmup_factor: float = 0.01
    restart: float = 0.0  # share of the steps after which the schedule starts over, warm-up and all; 0 = never
    restart_factor: float = 0.5  # learning rate at the top of the second schedule, relative to the first
    gradient_clip: float = 1.0  # L2 norm over all parameters
    bfloat16: bool = True  # autocast to bfloat16
    average: float = 0.0  # > 0: the result is a running mean of the weights, of which each step keeps this share
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError(f"'steps' and 'batch_size' must be >= 1, got {self.steps} and {self.batch_size}")
        if not 0 <= self.restart < 1:
            raise ConfigError(f"'restart' must be a share of the steps in 0 .. 1, got {self.restart}")
        if not 0 <= self.average < 1:
            raise ConfigError(f"'average' must be in 0 .. 1, got {self.average}")

    def scaled(self, budget: float) -> LoopConfig:
        """The same with `budget` times the steps."""
        return replace(self, steps=max(1, round(self.steps * budget)))


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where something is trained, and what keeps and shows its progress.

    Attributes:
        device: Where to train.
        state_file: Progress is written here now and then and on an interrupt, and continued from here; None = not kept.
        on_step: Told the step and its loss.
        made_from: What beside the loop's settings fixes the result, by name, such as a digest of the data: a state that
            was made from something else is refused by that name.
        validate: Scores the modules by name, higher is better; the best of the weights that it sees are the result.
        validations: How many times it is asked, evenly over the second half of the steps.
    """

    device: torch.device
    state_file: Path | None = None
    on_step: Callable[[int, float], None] | None = None
    made_from: Mapping[str, str] = field(default_factory=dict)
    validate: Callable[[Mapping[str, nn.Module]], float] | None = None
    validations: int = 1


def schedule_factor(step: int, config: LoopConfig) -> float:
    """Learning rate factor at `step`: linear warm-up, then a half cosine to zero; once more after a restart."""
    second = round(config.restart * config.steps)
    if not second:
        return _one_schedule(step, config.steps, config)
    if step < second:
        return _one_schedule(step, second, config)
    return config.restart_factor * _one_schedule(step - second, config.steps - second, config)


def _one_schedule(step: int, steps: int, config: LoopConfig) -> float:
    if step < config.warmup_steps:
        return config.warmup_factor + (1 - config.warmup_factor) * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def run_loop(
    modules: Mapping[str, nn.Module],
    parameter_groups: Sequence[dict[str, Any]],
    step_loss: Callable[[torch.Generator], Tensor],
    config: LoopConfig,
    run: Run,
    *,
    checkpoint_every_s: float = 60.0,
) -> list[float]:
    """Minimise `step_loss` with AdamW, a cosine schedule and gradient clipping.

    Where a state is kept, Ctrl-C and SIGTERM end the run after the step in progress, with that step in the state; a run
    that goes on from there, or from a state that is older, gives the same weights to the last bit.

    Args:
        modules: What is trained, by name; their trainable parameters are kept in the state file.
        parameter_groups: AdamW groups; each may hold an own `lr`.
        step_loss: Draws a batch with the generator it is given (seeded by the step, so that a resumed run sees the
            same batches) and returns the loss, a scalar.
        config: Steps, rates, seed.
        run: Where the modules are, and what keeps and shows the progress.
        checkpoint_every_s: Seconds between two writes of the state.

    Returns:
        The loss of each step that this call ran.

    Raises:
        TrainingError: The loss became NaN or infinite, or the state file belongs to another run.
        KeyboardInterrupt: Ctrl-C or SIGTERM came.
    """
    optimizer = torch.optim.AdamW(
        [{"lr": config.learning_rate, **group} for group in parameter_groups], weight_decay=config.weight_decay
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    kept = _Kept(modules, trainable, config, run)
    first = _resume(modules, optimizer, kept, config, run) if run.state_file else 0
    losses: list[float] = []
    last_write = time.monotonic()
    with _held_signals(run.state_file is not None) as was_interrupted:
        for step in range(first, config.steps):
            factor = schedule_factor(step, config)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            torch.manual_seed(config.seed * 1_000_003 + step)  # what a model drops is drawn from the global generator
            with torch.autocast(run.device.type, torch.bfloat16, enabled=config.bfloat16):
                loss = step_loss(generator)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(f"the loss became {value} at step {step}; lower the learning rate and start again")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trainable, config.gradient_clip)
            optimizer.step()
            kept.after(step)
            losses.append(value)
            if run.on_step:
                run.on_step(step, value)
            is_due = time.monotonic() - last_write > checkpoint_every_s or step + 1 == config.steps
            if run.state_file and (is_due or was_interrupted()):
                _write_state(modules, optimizer, kept, config, run, step + 1)
                last_write = time.monotonic()
            if was_interrupted():
                raise KeyboardInterrupt
    kept.put_result()
    return losses


class _Kept:
    """What of the weights is kept beside their present values: their running mean, and the best that was validated."""

    def __init__(
        self, modules: Mapping[str, nn.Module], parameters: Sequence[Tensor], config: LoopConfig, run: Run
    ) -> None:
        self._modules, self._parameters, self._config, self._run = modules, parameters, config, run
        self.average = [p.detach().clone() for p in parameters] if config.average else []
        self.best: list[Tensor] = []
        self.score = -math.inf
        count = min(run.validations, config.steps) if run.validate else 0
        half = config.steps // 2
        self._validated = {config.steps - 1 - (config.steps - half) * i // max(1, count) for i in range(count)}

    @torch.no_grad()
    def after(self, step: int) -> None:
        """Take in the weights after a step."""
        if self.average:
            share = 1 - min(self._config.average, (1 + step) / (10 + step))  # the first steps are forgotten sooner
            for mean, parameter in zip(self.average, self._parameters, strict=True):
                mean.lerp_(parameter, share)
        if step in self._validated:
            assert self._run.validate is not None
            present = [p.clone() for p in self._parameters]
            self._put(self.average)
            score = self._run.validate(self._modules)
            if score > self.score:
                self.score, self.best = score, [p.clone() for p in self._parameters]
            self._put(present)

    def put_result(self) -> None:
        """Make the result the modules' weights: the best, else the mean, else the last ones."""
        self._put(self.best or self.average)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=False):  # none: they stay
            parameter.copy_(value)

    def state(self) -> dict[str, Any]:
        """For the state file."""
        return {"average": self.average, "best": self.best, "score": self.score}

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        device = self._parameters[0].device
        self.average, self.best = ([item.to(device) for item in state[name]] for name in ("average", "best"))
        self.score = state["score"]


@contextmanager
def _held_signals(holds: bool) -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C and SIGTERM back for the block to ask after; a second Ctrl-C acts at once."""
    came: list[int] = []
    if not holds or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: object) -> None:
        came.append(number)
        if came.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _write_state(
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    kept: _Kept,
    config: LoopConfig,
    run: Run,
    step: int,
) -> None:
    assert run.state_file is not None
    run.state_file.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: {key: value.detach() for key, value in module.named_parameters() if value.requires_grad}
        for name, module in modules.items()
    }
    state = {
        "step": step,
        "loop": asdict(config),
        "made_from": dict(run.made_from),
        "weights": weights,
        "optimizer": optimizer.state_dict(),
        **kept.state(),
    }
    with atomic_file(run.state_file) as partial:  # an interrupted write leaves the former state
        torch.save(state, partial)


def _resume(
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    kept: _Kept,
    config: LoopConfig,
    run: Run,
) -> int:
    path = run.state_file
    if path is None or not path.is_file():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if difference := _difference(state, config, run):
            raise TrainingError(f"state {path} was made with {difference}; remove it to start anew")
        for name, module in modules.items():
            parameters = dict(module.named_parameters())
            for key, value in state["weights"][name].items():
                parameters[key].data.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        kept.load(state)
    except (KeyError, TypeError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise TrainingError(f"state {path} does not fit this run ({reason}); remove it to start anew") from None
    log.info("continuing at step %d of %d from %s", state["step"], config.steps, path)
    return int(state["step"])


def _difference(state: Mapping[str, Any], config: LoopConfig, run: Run) -> str:
    """How a state is of another run: "seed 1, not 2"; empty where it is of this one.

    Steps may be added by a restart: what counts is that the steps done were the same.
    """
    former = LoopConfig(**state["loop"])
    for name, value in asdict(config).items():
        if name not in ("steps", "restart", "restart_factor") and getattr(former, name) != value:
            return f"{name} {getattr(former, name)}, not {value}"
    if any(schedule_factor(step, former) != schedule_factor(step, config) for step in range(state["step"])):
        return f"a schedule of {counted(former.steps, 'step')}, not {config.steps}"
    names = {**state["made_from"], **run.made_from}
    changed = [name for name in names if state["made_from"].get(name) != run.made_from.get(name)]
    return f"another {changed[0]}" if changed else ""
