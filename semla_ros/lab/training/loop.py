"""One resumable optimisation loop for everything that is trained here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semla_ros.errors import ConfigError, TrainingError
from semla_ros.file_integrity import atomic_file

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
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.restart < 1:
            raise ConfigError(f"'restart' must be a share of the steps in 0 .. 1, got {self.restart}")

    def scaled(self, budget: float) -> LoopConfig:
        """The same with `budget` times the steps."""
        return replace(self, steps=max(1, round(self.steps * budget)))


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where something is trained, and what keeps and shows its progress."""

    device: torch.device
    state_file: Path | None = None  # progress is written here now and then, and continued from here; None = not kept
    on_step: Callable[[int, float], None] | None = None  # told the step and its loss


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
    """
    optimizer = torch.optim.AdamW(
        [{"lr": config.learning_rate, **group} for group in parameter_groups], weight_decay=config.weight_decay
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    first = _resume(modules, optimizer, config, run.state_file) if run.state_file else 0
    losses: list[float] = []
    last_write = time.monotonic()
    for step in range(first, config.steps):
        factor = schedule_factor(step, config)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=config.bfloat16):
            loss = step_loss(generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss became {value} at step {step}; lower the learning rate and start again")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainable, config.gradient_clip)
        optimizer.step()
        losses.append(value)
        if run.on_step:
            run.on_step(step, value)
        if run.state_file and (time.monotonic() - last_write > checkpoint_every_s or step + 1 == config.steps):
            _write_state(modules, optimizer, config, step + 1, run.state_file)
            last_write = time.monotonic()
    return losses


def _write_state(
    modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, config: LoopConfig, step: int, path: Path
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: {key: value.detach() for key, value in module.named_parameters() if value.requires_grad}
        for name, module in modules.items()
    }
    state = {"step": step, "seed": config.seed, "weights": weights, "optimizer": optimizer.state_dict()}
    with atomic_file(path) as partial:  # an interrupted write leaves the former state
        torch.save(state, partial)


def _resume(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, config: LoopConfig, path: Path) -> int:
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["seed"] != config.seed:
            raise TrainingError(
                f"state {path} was made with seed {state['seed']}, not {config.seed}; remove it to start anew"
            )
        for name, module in modules.items():
            parameters = dict(module.named_parameters())
            for key, value in state["weights"][name].items():
                parameters[key].data.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise TrainingError(f"state {path} does not fit this run ({error}); remove it to start anew") from None
    log.info("continuing at step %d of %d from %s", state["step"], config.steps, path)
    return int(state["step"])
