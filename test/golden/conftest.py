"""The reference set, read once for all its tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from reference_set import Arrays, load_golden_model, read_arrays, read_json

from semla_ros.segmentation.checkpoint import LoadedModel
from semla_ros.segmentation.text_prompts import Vocabulary


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the reference set; `SEMLA_GOLDEN_DIR` names another of the same layout."""
    return Path(os.environ.get("SEMLA_GOLDEN_DIR") or Path(__file__).parent / "data")


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


@pytest.fixture(scope="session")
def golden_model(golden_dir: Path) -> LoadedModel:
    """The toy model, shared: tests that change it load their own with `load_golden_model`."""
    return load_golden_model(golden_dir)


@pytest.fixture(scope="session")
def golden_vocabulary(golden_tokens: Arrays, golden_config: dict[str, Any]) -> Vocabulary:
    """The toy token table: row -> byte-pair id."""
    return Vocabulary(golden_tokens["vocab_bpe_ids"].tolist(), golden_config["clip"]["context_length"])
