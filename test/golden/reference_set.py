"""How the tests read the reference set. Dimensions, names and seeds are read from the set's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semla_ros.segmentation.aggregation_layers import AggregatorConfig
from semla_ros.segmentation.checkpoint import LoadedModel, load_model
from semla_ros.segmentation.clip import ClipConfig
from semla_ros.segmentation.model import CatSegConfig
from semla_ros.segmentation.protocol import SlidingConfig

Arrays = Mapping[str, np.ndarray]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def toy_config(values: Mapping[str, Any], **changes: Any) -> CatSegConfig:
    """The architecture that a set's `config.json` tells; `changes` are aggregator settings such as another pooling."""
    clip, aggregator, sliding = values["clip"], values["aggregator"], values["sliding_window"]
    native, working = (clip[name] // clip["patch"] for name in ("native_resolution", "input_resolution"))
    kernel = sliding["kernel"]
    same = ("patch", "visual_width", "visual_layers", "embed_dim", "text_width", "text_layers", "context_length")
    return CatSegConfig(
        clip=ClipConfig(
            **{name: clip[name] for name in (*same, "vocab_rows")},
            native_grid=(native, native),
            working_grid=(working, working),
        ),
        aggregator=AggregatorConfig(
            **{
                "grid": (working, working),
                "hidden_dim": aggregator["hidden_dim"],
                "layers": aggregator["num_layers"],
                "heads": aggregator["num_heads"],
                "window": aggregator["window_size"],
                "pooling": tuple(aggregator["pooling"]),
                "pad_len": aggregator["pad_len"],
                "embed_dim": clip["embed_dim"],
                "text_guidance_dim": aggregator["text_guidance_proj_dim"],
                "appearance_guidance_dim": aggregator["appearance_guidance_proj_dim"],
                "decoder_dims": tuple(aggregator["decoder_dims"]),
                "decoder_guidance_dims": tuple(aggregator["decoder_guidance_dims"]),
                "decoder_guidance_proj_dims": tuple(aggregator["decoder_guidance_proj_dims"]),
                **changes,
            }
        ),
        guidance_layers=tuple(values["guidance_layer_indexes"]),
        sliding=SlidingConfig(kernel=(kernel, kernel), canvas=tuple(sliding["out_res"]), overlap=sliding["overlap"]),
    )


def load_golden_model(golden_dir: Path, changes: Mapping[str, Any] | None = None) -> LoadedModel:
    """A fresh toy model; `changes` are aggregator settings such as the pooling of a variant."""
    config = toy_config(read_json(golden_dir / "config.json"), **(changes or {}))
    return load_model(golden_dir / "checkpoint.safetensors", config=config)


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
