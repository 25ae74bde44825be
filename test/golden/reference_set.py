"""How the tests read the reference set. Dimensions, names and seeds are read from the set's own files."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semla_ros.segmentation.checkpoint import LoadedModel, load_model
from semla_ros.segmentation.model import SlidingConfig

Arrays = Mapping[str, np.ndarray]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


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


def only_entry(arrays: Arrays, pattern: str) -> tuple[str, re.Match[str]]:
    """Name of the one entry of this form, and what it tells of sizes, strides and counts, which each set chooses."""
    found = [(name, match) for name in arrays if (match := re.fullmatch(pattern, name))]
    assert len(found) == 1, f"entries of the form {pattern}: {[name for name, _ in found]}"
    return found[0]


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
