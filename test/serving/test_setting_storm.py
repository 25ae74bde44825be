"""Whatever a setting is given, it is refused by name and value, or a pipeline runs with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semla_ros.errors import ConfigError, SemlaError
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import Frame
from semla_ros.serving.camera_statistics import CameraStatistics
from semla_ros.serving.health import camera_report
from semla_ros.serving.model_bank import ModelBank
from semla_ros.serving.parameters import SPECS, Settings

NUMBERS = (
    math.nan, math.inf, -math.inf, -1, -1.0, -0.0, 0, 0.0, 1, 1.0, 2, 0.5, 5e-324, 1e-300, 1e-12, 1e-9, 1e9, 1e10,
    1e300, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 2**64, 10**400,
)  # fmt: skip
WORDS = (
    "", " ", "a", "auto", "cpu", "cuda:99", "xpu", "0", "nan", "~nobody/x", "../..", "/dev/null", "/proc/1/root",
    "a\0b", "\n", "\ud800", "x" * 300, "x/" * 3000, "café",
)  # fmt: skip
LISTS = (
    [], [""], ["", ""], ["road", ""], ["road"], ["road", "road"], ["road", "Road, sky"], ["unicorn"], ["x" * 300],
    ["road"] * 70_000, [f"c{index}" for index in range(65)], ["1a"], ["a b"], ["/a"], ["a/"], ["a//b"], ["a/1"], ["é"],
    ["~"], ["{a}"], ["a\0b"], ["\ud800"], [1, 2], [math.nan], [None], [["road"]],
)  # fmt: skip
OTHERS = (True, False, b"road", {}, {"road": 1}, object(), (1.0, 2.0))
VALUES = (*NUMBERS, *WORDS, *LISTS, *OTHERS)
FRAME = Frame(image=np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), stamp_ns=10**18)


@pytest.fixture(scope="module")
def settings_of(tiny_model_folder: Path, tiny_library_folder: Path) -> Any:
    files = {"model": str(tiny_model_folder), "library": str(tiny_library_folder), "device": "cpu", "engine": "torch"}
    return lambda **changes: Settings.make(files | changes)


@pytest.fixture(scope="module")
def bank(settings_of: Any) -> ModelBank:
    bank = ModelBank(PerceptionPipeline.load)
    bank.open(settings_of(), ("front", "left"))
    return bank


def answer(bank: ModelBank, action: str = "fused") -> None:
    """One frame, whose turn of the adaptation does that, and another one; a failed adaptation is a failed test."""
    bank.any.reset_gate()
    failures = bank.any.status().failures
    result, step = bank.any.process(FRAME)
    assert step.action == action, step.error
    assert step.mix is None or np.isfinite(step.mix.weights).all()
    assert result.mask.shape == FRAME.image.shape[:2]
    bank.any.adapt(Frame(image=FRAME.image[::-1], stamp_ns=FRAME.stamp_ns + 10**9))
    assert bank.any.status().failures == failures, bank.any.status().last_error


def report(settings: Settings) -> None:
    statistics, config = CameraStatistics(), settings.node.diagnostics
    statistics.receive(1.0)
    camera_report("perception", "", "/image", statistics.snapshot(2.0, config.hold_s), config, is_enabled=True)


@pytest.mark.parametrize("name", SPECS)
def test_a_setting_is_refused_by_name_and_value_or_a_pipeline_runs_with_it(
    name: str, bank: ModelBank, settings_of: Any
) -> None:
    accepted = 0
    slow = ("auto", "onnx", "openvino", "tensorrt", "fp16", True) if name in ("engine", "compile", "precision") else ()
    for value in (item for item in (*VALUES, *SPECS[name].choices) if item not in slow):
        settings, error = attempt(partial(settings_of, **{name: value}))
        if error is not None:
            assert type(error) is ConfigError
            assert name in str(error), (value, error)
            assert "must be" in str(error), (value, error)
            assert any(form in str(error) for form in shown(value)), (value, error)
            continue
        accepted += 1
        if name.startswith("diagnostics."):
            report(settings)
        elif SPECS[name].is_live:
            use_live(bank, settings_of(), settings)
        elif settings.pipeline != settings_of().pipeline:
            load_anew(settings)
    assert accepted


def attempt(call: Callable[[], Any]) -> tuple[Any, SemlaError | None]:
    try:
        return call(), None
    except SemlaError as error:
        return None, error


def shown(value: Any) -> set[str]:
    """How a value may be written: as ROS has it, or the part of it that is wrong."""
    if not isinstance(value, (list, tuple)):
        return {repr(value)} | ({repr(float(value))} if isinstance(value, int) and abs(value) < 2**63 else set())
    return {repr(list(value) or [""]), repr(tuple(value)), *map(repr, value)}


def use_live(bank: ModelBank, before: Settings, settings: Settings) -> None:
    present = before.with_recommended(bank.any.retrieval, bank.any.drift, bank.any.class_names)
    _, error = attempt(partial(bank.apply, present, settings))
    if error is not None:
        assert any(word in str(error) for word in ("class", "word", "tokens")), error
        settings = present
    answer(bank)
    bank.apply(settings, present)


def load_anew(settings: Settings) -> None:
    """Files and devices that are not there are found out when they are loaded."""
    bank = ModelBank(PerceptionPipeline.load)
    _, error = attempt(partial(bank.open, settings, ("",)))
    if error is not None:
        config = settings.pipeline
        given = {config.model, config.model_dir, f"'{config.inference.device}'", str(Path(config.library).expanduser())}
        given |= {f"got {config.inference.early_rejection}", f"got {config.inference.working_resolution}"}
        assert any(value in str(error) for value in given - {""}), error
        return
    answer(bank, "frozen" if settings.pipeline.start_frozen else "fused")
    bank.close()
