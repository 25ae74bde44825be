"""The reference set and what its tests share. Dimensions, names and seeds are read from the set's own files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semla_ros.segmentation.checkpoint import LoadedModel, load_model
from semla_ros.segmentation.model import SlidingConfig
from semla_ros.segmentation.text_prompts import Vocabulary

Arrays = Mapping[str, np.ndarray]


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the reference set; `SEMLA_GOLDEN_DIR` names another of the same layout."""
    return Path(os.environ.get("SEMLA_GOLDEN_DIR") or Path(__file__).parent / "data")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="session")
def golden_config(golden_dir: Path) -> dict[str, Any]:
    return read_json(golden_dir / "config.json")


@pytest.fixture(scope="session")
def golden_inputs(golden_dir: Path) -> Arrays:
    return read_arrays(golden_dir / "inputs.npz")


@pytest.fixture(scope="session")
def golden_tokens(golden_dir: Path) -> Arrays:
    return read_arrays(golden_dir / "tokens.npz")


@pytest.fixture(scope="session")
def golden_text(golden_dir: Path) -> Arrays:
    return read_arrays(golden_dir / "text.npz")


@pytest.fixture(scope="session")
def golden_stages(golden_dir: Path) -> Arrays:
    return read_arrays(golden_dir / "stages.npz")


@pytest.fixture(scope="session")
def golden_seg(golden_dir: Path) -> Arrays:
    return read_arrays(golden_dir / "seg.npz")


@pytest.fixture(scope="session")
def golden_variants(golden_dir: Path) -> Arrays:
    return read_arrays(golden_dir / "variants.npz")


def untold_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the toy checkpoint's tensors cannot tell, in the form that `load_model` takes."""
    clip, aggregator, sliding = config["clip"], config["aggregator"], config["sliding_window"]
    native, working = (clip[name] // clip["patch"] for name in ("native_resolution", "input_resolution"))
    kernel = sliding["kernel"]
    return {
        "clip": {"native_grid": (native, native), "working_grid": (working, working)},
        "aggregator": {
            "grid": (working, working),
            "heads": aggregator["num_heads"],
            "pad_len": aggregator["pad_len"],
            "pooling": tuple(aggregator["pooling"]),
        },
        "guidance_layers": tuple(config["guidance_layer_indexes"]),
        "sliding": dataclasses.asdict(
            SlidingConfig(kernel=(kernel, kernel), canvas=tuple(sliding["out_res"]), overlap=sliding["overlap"])
        ),
    }


def load_golden_model(golden_dir: Path, changes: Mapping[str, Any] | None = None) -> LoadedModel:
    """A fresh toy model; `changes` are aggregator settings such as the pooling of a variant."""
    config = read_json(golden_dir / "config.json")
    settings = untold_settings(config)
    settings["aggregator"] |= dict(changes or {})
    return load_model(golden_dir / "checkpoint.safetensors", settings=settings)


@pytest.fixture(scope="session")
def golden_model(golden_dir: Path) -> LoadedModel:
    """The toy model, shared: tests that change it load their own with `load_golden_model`."""
    return load_golden_model(golden_dir)


@pytest.fixture(scope="session")
def golden_vocabulary(golden_tokens: Arrays, golden_config: dict[str, Any]) -> Vocabulary:
    """The toy token table: row -> byte-pair id."""
    return Vocabulary(golden_tokens["vocab_bpe_ids"].tolist(), golden_config["clip"]["context_length"])


def class_rows(tokens: Arrays, name: str = "classes") -> torch.Tensor:
    """Token rows of a class list, (T, L) int64."""
    return torch.from_numpy(tokens[f"{name}_row"]).long()


def image_tensor(inputs: Arrays, name: str) -> torch.Tensor:
    """One input image, (3, H, W) uint8."""
    return torch.from_numpy(inputs[name])


def largest_error(actual: torch.Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference; shapes must be equal."""
    values = actual.detach().cpu().numpy() if isinstance(actual, torch.Tensor) else actual
    assert values.shape == expected.shape, f"{values.shape} instead of {expected.shape}"
    return float(np.abs(values.astype(np.float64) - expected.astype(np.float64)).max())
