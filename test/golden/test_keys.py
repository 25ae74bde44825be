"""Names and shapes at the published sizes, without weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference_set import read_json

from semla_ros.segmentation.model import CatSeg, CatSegConfig
from semla_ros.segmentation.targets import lora_signature

KEYS = Path(__file__).parent / "data" / "keys"  # facts of the published sizes, not of a reference set
SIZES = {"vitb16": CatSegConfig.catseg_b, "vitl14_336": CatSegConfig.catseg_l}


def meta_tensors(size: str) -> dict[str, torch.Tensor]:
    shapes = read_json(KEYS / f"{size}_state_dict.json")
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def meta_model(config: CatSegConfig) -> CatSeg:
    with torch.device("meta"):
        return CatSeg(config)


@pytest.mark.parametrize("size", SIZES)
def test_every_published_tensor_has_its_place_and_no_place_stays_empty(size: str) -> None:
    tensors = CatSeg.own_names(meta_tensors(size))
    expected = {name: item.shape for name, item in meta_model(SIZES[size]()).state_dict().items()}
    assert {name: item.shape for name, item in tensors.items()} == expected


@pytest.mark.parametrize("size", SIZES)
def test_alias_names_mean_the_same_tensors(size: str) -> None:
    published = meta_tensors(size)
    aliases = read_json(KEYS / f"{size}_alias.json")["alias_keys"]
    assert set(aliases.values()) <= published.keys()
    doubled = {**published, **{alias: published[name] for alias, name in aliases.items()}}
    only_aliases = {name: item for name, item in doubled.items() if name not in aliases.values()}
    expected = CatSeg.own_names(published).keys()
    assert CatSeg.own_names(doubled).keys() == expected
    assert CatSeg.own_names(only_aliases).keys() == expected


@pytest.mark.parametrize("size", SIZES)
def test_adapter_targets_are_the_published_ones(size: str) -> None:
    published = {item["module"]: (item["out"], item["in"]) for item in read_json(KEYS / f"{size}_lora_targets.json")}
    assert lora_signature(meta_model(SIZES[size]())) == published


def test_parameter_counts_are_the_published_ones() -> None:
    counts = {
        size: round(sum(item.numel() for item in meta_model(make()).parameters()) / 1e6, 1)
        for size, make in SIZES.items()
    }
    assert counts == {"vitb16": 154.3, "vitl14_336": 433.7}
