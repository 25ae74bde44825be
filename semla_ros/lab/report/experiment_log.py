"""Figures of a training or an evaluation, told to TensorBoard, Weights & Biases or MLflow while it runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from semla_ros.errors import ConfigError

Scalars = Callable[[Mapping[str, float], int], None]
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # kind of log -> what pip installs
PROJECT = "semla"
_current: ContextVar[Scalars | None] = ContextVar("experiment_log", default=None)


def log_scalars(values: Mapping[str, float], step: int) -> None:
    """Tell the present log; nothing where there is none.

    Args:
        values: Name, with "/" between the parts -> value.
        step: Of the training; 0 for what is measured once.
    """
    if (log := _current.get()) is not None:
        log(values, step)


@contextmanager
def experiment_log(kind: str, folder: Path, name: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Make a log the present one; `kind` may be empty for none.

    Args:
        kind: One of `PACKAGES`.
        folder: For the files of TensorBoard, and of Weights & Biases.
        name: Of the run.
        settings: What it was started with.

    Raises:
        ConfigError: The package is not installed, or refuses to begin.
    """
    if not kind:
        yield
        return
    told = {key: str(value) for key, value in settings.items() if value not in (None, "", [], ())}
    try:
        scalars, close = _OPEN[kind](folder, name, told)
    except ImportError:
        raise ConfigError(f"--log-to {kind} needs a package: pip install {PACKAGES[kind]}") from None
    except OSError:
        raise
    except Exception as error:  # each package has errors of its own
        raise ConfigError(f"--log-to {kind}: {type(error).__name__}: {error}") from None
    token = _current.set(scalars)
    try:
        yield
    finally:
        _current.reset(token)
        close()


def _open_tensorboard(folder: Path, name: str, settings: Mapping[str, str]) -> tuple[Scalars, Callable[[], None]]:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / name))
    rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
    writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")

    def scalars(values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return scalars, writer.close


def _open_wandb(folder: Path, name: str, settings: Mapping[str, str]) -> tuple[Scalars, Callable[[], None]]:
    wandb = importlib.import_module("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(project=PROJECT, name=name, dir=str(folder), config=dict(settings))

    def scalars(values: Mapping[str, float], step: int) -> None:
        # Its own count only grows, and several stages begin at 0.
        run.log({**values, **{f"{key.rpartition('/')[0] or key}/step": step for key in values}})

    return scalars, run.finish


def _open_mlflow(_folder: Path, name: str, settings: Mapping[str, str]) -> tuple[Scalars, Callable[[], None]]:
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(PROJECT)
    mlflow.start_run(run_name=name)
    mlflow.log_params({key: value[:500] for key, value in settings.items()})

    def scalars(values: Mapping[str, float], step: int) -> None:
        mlflow.log_metrics({_mlflow_name(key): value for key, value in values.items()}, step=step)

    return scalars, mlflow.end_run


def _mlflow_name(key: str) -> str:
    """Letters, digits and a few signs are allowed in the name of a metric."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in key)


_OPEN: dict[str, Callable[[Path, str, Mapping[str, str]], tuple[Scalars, Callable[[], None]]]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
}
