"""Fused models against the reference set: weights, class embeddings, final maps."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semla_ros.adaptation.fusion import Fuser
from semla_ros.lab.evaluation.variants import VARIANTS, shares
from semla_ros.library.adapter_library import Adapter, AdapterLibrary
from semla_ros.results import AdapterMix
from semla_ros.segmentation.checkpoint import LoadedModel
from semla_ros.segmentation.model import CatSeg
from semla_ros.segmentation.one_image import segment_probabilities
from semla_ros.segmentation.targets import lora_signature

Arrays = Mapping[str, np.ndarray]
MAP_TOLERANCE = 5e-5
TEXT_TOLERANCE = 2e-5
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
CLIP_QKV = re.compile(r"sem_seg_head\.predictor\.clip_model\..*\.attn\.[qkv]_proj")
ENTRY = re.compile(r"(?P<family>.+)_img(?P<image>\d+)(?:_out(?P<height>\d+)x(?P<width>\d+))?")


@pytest.fixture(scope="module")
def library(golden_dir: Path, golden_model: LoadedModel) -> AdapterLibrary:
    return AdapterLibrary.load(golden_dir / "adapters", targets=lora_signature(golden_model.model))


class InertClipQkv:
    """A library as the published forward pass sees it: deltas on CLIP's q, k and v are there and never act."""

    def __init__(self, library: AdapterLibrary) -> None:
        self._library, self.names = library, library.names

    def adapter(self, name: str) -> Adapter:
        adapter = self._library.adapter(name)
        acting = {path: pair for path, pair in adapter.layers.items() if not CLIP_QKV.fullmatch(path)}
        return replace(adapter, _read=lambda: acting)


class World:
    """The reference set with a model of its own to fuse."""

    def __init__(
        self,
        config: dict[str, Any],
        loaded: LoadedModel,
        library: AdapterLibrary,
        token_rows: np.ndarray,
        semla_weights: Mapping[str, Mapping[str, float]],
        inputs: Arrays,
    ) -> None:
        self.domains: tuple[str, ...] = tuple(config["domains"])
        self.base = loaded.model
        self.library, self._inputs, self._semla = library, inputs, semla_weights
        self._tokens = torch.from_numpy(token_rows).long()

    def fuser(self, *, is_published: bool = False, **settings: Any) -> tuple[CatSeg, Fuser]:
        model = copy.deepcopy(self.base)
        library = InertClipQkv(self.library) if is_published else self.library
        return model, Fuser(model, library, self._tokens, **settings)

    def single(self, name: str) -> AdapterMix:
        return mix_of({name: 1.0})

    def uniform(self, without: Sequence[str] = ()) -> AdapterMix:
        kept = [name for name in self.domains if name not in without]
        return mix_of({name: 1 / len(kept) for name in kept})

    def semla(self, image: int) -> AdapterMix:
        return mix_of(self._semla[str(image)])

    def mix_of_family(self, family: str, image: int) -> AdapterMix:
        """The mix behind an entry's name, such as "single_<domain>" or "uniform_without_second"."""
        if family == "uniform":
            return self.uniform()
        if family.startswith("uniform_without_"):
            return self.uniform(without=[self.domains[ORDINALS.index(family.removeprefix("uniform_without_"))]])
        if family.startswith("single_"):
            return self.single(family.removeprefix("single_"))
        if family in ("semla", "semla_fresh", "semla_loop"):
            return self.semla(image)
        raise AssertionError(f"entry family '{family}' is not known")

    def predict(self, model: CatSeg, text: Tensor, image: int, like: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(self._inputs[f"img{image}"])
        return segment_probabilities(model, pixels, text, like.shape[1:], "sliding")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(
    golden_dir: Path,
    golden_config: dict[str, Any],
    golden_model: LoadedModel,
    golden_tokens: Arrays,
    golden_inputs: Arrays,
    library: AdapterLibrary,
) -> World:
    weights = json.loads((golden_dir / "semla_weights.json").read_text(encoding="utf-8"))
    return World(golden_config, golden_model, library, golden_tokens["classes_row"], weights, golden_inputs)


def mix_of(weights: Mapping[str, float]) -> AdapterMix:
    names = sorted(weights, key=lambda name: -weights[name])
    values = np.array([weights[name] for name in names], np.float64)
    return AdapterMix(
        names=tuple(names), weights=values / values.sum(), distances=np.full(len(names), np.nan), base_weight=0.0
    )


def put(fuser: Fuser, mix: AdapterMix) -> Tensor:
    prepared = fuser.prepare(mix)
    fuser.commit(prepared)
    return prepared.text_features


def entries(arrays: Arrays, start: str) -> list[tuple[str, str, int]]:
    """Name, family and image of the entries whose family starts so, by image."""
    found = []
    for name in arrays:
        match = ENTRY.fullmatch(name)
        assert match, f"entry '{name}' is not of the form <family>_img<i>"
        if match["family"].startswith(start):
            found.append((name, match["family"], int(match["image"])))
    return sorted(found, key=lambda item: item[2])


def largest_difference(actual: Tensor, expected: np.ndarray) -> float:
    assert tuple(actual.shape) == expected.shape
    return float(np.abs(actual.numpy().astype(np.float64) - expected).max())


def test_the_set_holds_no_entry_that_these_tests_pass_over(golden_seg: Arrays) -> None:
    known = ("zeroshot", "single_", "uniform", "semla_fresh", "semla_loop", "allmerged_")
    assert [name for name in golden_seg if not name.startswith(known)] == []


@pytest.mark.parametrize("memory", ["double", "single"])
def test_fused_weights_are_the_float64_sum(world: World, library: AdapterLibrary, memory: str) -> None:
    model, fuser = world.fuser(memory=memory)
    adapters = {name: library.adapter(name) for name in library.names}
    for mix in (world.semla(0), world.uniform()):
        put(fuser, mix)
        for path in lora_signature(model):
            expected = world.base.get_submodule(path).weight.double()  # type: ignore[operator, union-attr]
            for name, weight in zip(mix.names, mix.weights, strict=True):
                if path not in adapters[name].layers:
                    continue  # an adapter that lacks a target contributes nothing there
                a, b = adapters[name].layers[path]
                expected = expected + float(weight) * adapters[name].scaling * (b.double() @ a.double())
            fused = model.get_submodule(path).weight.double()  # type: ignore[operator, union-attr]
            assert (fused - expected).abs().max() <= 1e-6 * expected.abs().max(), path


def test_class_embeddings_follow_the_fused_text_tower(world: World, golden_text: Arrays) -> None:
    _, published = world.fuser(is_published=True)
    _, ours = world.fuser()
    errors = {}
    for name, expected in golden_text.items():
        if name == "base":
            errors[name] = largest_difference(put(ours, AdapterMix()), expected)
        elif name.startswith("allmerged_"):
            mix = world.mix_of_family(name.removeprefix("allmerged_"), 0)
            errors[name] = largest_difference(put(ours, mix), expected)
        elif name.startswith("semla_img"):
            mix = world.semla(int(name.removeprefix("semla_img")))
            errors[name] = largest_difference(put(published, mix), expected)
        elif name.startswith(("single_", "uniform")):
            errors[name] = largest_difference(put(published, world.mix_of_family(name, 0)), expected)
    assert len(errors) > 1
    assert {name: error for name, error in errors.items() if error > TEXT_TOLERANCE} == {}


@pytest.mark.parametrize("family", ["single_", "uniform", "semla_fresh"])
def test_maps_without_the_clip_deltas_are_as_published(world: World, golden_seg: Arrays, family: str) -> None:
    model, fuser = world.fuser(is_published=True)
    found = entries(golden_seg, family)
    assert found
    for name, entry_family, image in found:
        text = put(fuser, world.mix_of_family(entry_family, image))
        maps = world.predict(model, text, image, golden_seg[name])
        assert largest_difference(maps, golden_seg[name]) <= MAP_TOLERANCE, name


def test_maps_with_every_delta_acting_are_the_default(world: World, golden_seg: Arrays) -> None:
    model, fuser = world.fuser()
    found = entries(golden_seg, "allmerged_")
    assert found
    for name, family, image in found:
        text = put(fuser, world.mix_of_family(family.removeprefix("allmerged_"), image))
        maps = world.predict(model, text, image, golden_seg[name])
        assert largest_difference(maps, golden_seg[name]) <= MAP_TOLERANCE, name


def test_the_published_loop_is_reproduced_with_its_stale_class_embeddings(world: World, golden_seg: Arrays) -> None:
    model, fuser = world.fuser(is_published=True)
    found = entries(golden_seg, "semla_loop")
    assert len(found) > 1
    first_text = None  # the published loop computes class embeddings for its first image and keeps them
    for name, family, image in found:
        text = put(fuser, world.mix_of_family(family, image))
        first_text = text if first_text is None else first_text
        maps = world.predict(model, first_text, image, golden_seg[name])
        assert largest_difference(maps, golden_seg[name]) <= MAP_TOLERANCE, name


def test_late_fusion_averages_the_maps_of_the_single_adapters(world: World, golden_seg: Arrays) -> None:
    model, fuser = world.fuser(is_published=True)
    of_image: dict[int, dict[str, str]] = {}
    for entry, family, image in entries(golden_seg, "single_"):
        of_image.setdefault(image, {})[family.removeprefix("single_")] = entry
    image, singles = max(of_image.items(), key=lambda item: len(item[1]))
    assert len(singles) > 1
    weights = {name: float(index + 1) for index, name in enumerate(singles)}
    expected = sum(weight * golden_seg[singles[name]].astype(np.float64) for name, weight in weights.items())
    expected = expected / sum(weights.values())
    retriever = SimpleNamespace(retrieve=lambda embedding, exclude: mix_of(weights))
    parts = shares(
        VARIANTS["late_fusion"], own=None, adapter_names=list(singles), retriever=retriever, embedding=np.zeros(1)
    )
    maps = sum(part.weight * world.predict(model, put(fuser, part.mix), image, expected).double() for part in parts)
    assert largest_difference(maps, expected) <= MAP_TOLERANCE
