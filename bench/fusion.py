"""Fusing five adapters: ours, peft's concatenation, and a plain copy of the same weights as the floor."""

from __future__ import annotations

import copy
import itertools
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from bench.published_loop import PublishedLoop
from bench.random_world import ADAPTERS, Size, random_model, random_tokens, write_random_library
from bench.threads import thread_counts, torch_threads
from bench.timing import time_alternating, time_runs
from semla_ros.adaptation.fusion import Fuser
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.results import AdapterMix
from semla_ros.segmentation.model import CatSeg
from semla_ros.segmentation.targets import lora_signature

ENDURANCE = {"toy": 20, "tiny": 1000, "b": 50, "l": 20}  # fusions with class embeddings: half a second each at B size


def mix_of(weights: np.ndarray) -> AdapterMix:
    """All adapters of the benchmark with these weights."""
    order = np.argsort(-weights)
    return AdapterMix(
        names=tuple(ADAPTERS[index] for index in order),
        weights=weights[order].astype(np.float64),
        distances=np.full(len(order), np.nan),
        base_weight=0.0,
    )


def measure(size: Size, repeats: int = 7) -> dict[str, object]:
    """Time fusions; returns figures under the keys of summary.json's `fusion`."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(size)
        write_random_library(Path(folder), model, ADAPTERS, dim=8)
        library = AdapterLibrary.load(folder, targets=lora_signature(model))
        peer_model = copy.deepcopy(model)
        reference = copy.deepcopy(model)
        fuser = Fuser(model, library, random_tokens(model, 19))
        rng = np.random.default_rng(0)
        fuser.commit(fuser.prepare(mix_of(rng.dirichlet(np.ones(5)))))  # loads the adapters
        mixes = [mix_of(rng.dirichlet(np.ones(5))) for _ in range(repeats + 1)]
        error = _error_of_a_fusion(fuser, model, reference, library, mixes[0])
        endurance = _endurance(fuser, mixes, ENDURANCE[size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns that the active adapter was deleted, which is the point
            loop = PublishedLoop(peer_model, Path(folder), ADAPTERS)
            by_threads = {}
            for threads in thread_counts():
                with torch_threads(threads):
                    by_threads[str(threads)] = _comparison(fuser, loop, mixes, repeats)
    return {
        "weights": sum(out * inner for out, inner in lora_signature(model).values()),
        "modules": len(model.lora_targets()),
        "threads": max(thread_counts()),
        **by_threads[str(max(thread_counts()))],
        "by_threads": by_threads,
        "largest_relative_error": error,
        "endurance": endurance,
    }


def _comparison(fuser: Fuser, loop: PublishedLoop, mixes: Sequence[AdapterMix], repeats: int) -> dict[str, object]:
    turns = itertools.cycle(mixes)
    ours, with_text, floor = time_alternating(
        [
            lambda: fuser.fuse_standby(next(turns)),
            lambda: fuser.commit(fuser.prepare(mixes[0])),
            lambda: [slab.standby.copy_(slab.base) for slab in fuser.slabs],
        ],
        repeats,
    )
    peer = time_runs(lambda: _cycle(loop, mixes[0], merges=False), max(3, repeats // 2))
    merging = time_runs(lambda: _cycle(loop, mixes[0], merges=True), 2, warm_up=0)
    return {
        "fuse": ours.as_dict(),
        "prepare_and_commit_with_text": with_text.as_dict(),
        "copy": floor.as_dict(),
        "peft_cat_activate_delete": peer.as_dict(),
        "peft_with_merge_and_unmerge": merging.as_dict(),
        "speedup_vs_peft": peer.median / ours.median,
        "speedup_vs_peft_with_merge": merging.median / ours.median,
        "times_copy": ours.median / floor.median,
        "speedup_vs_peft_in_processor_time": peer.cpu_median / ours.cpu_median,
        "times_copy_in_processor_time": ours.cpu_median / floor.cpu_median,
    }


def _endurance(fuser: Fuser, mixes: Sequence[AdapterMix], count: int) -> dict[str, object]:
    """Commit a mix, then many others, then it again: do its bits come back, and does the process grow?"""
    fuser.commit(fuser.prepare(mixes[0]))
    first = [slab.live.clone() for slab in fuser.slabs]
    for mix in mixes:  # what is allocated once has been
        fuser.commit(fuser.prepare(mix))
    before = psutil.Process().memory_info().rss
    for turn in range(count):
        fuser.commit(fuser.prepare(mixes[turn % len(mixes)]))
    growth = psutil.Process().memory_info().rss - before
    fuser.commit(fuser.prepare(mixes[0]))
    return {
        "fusions": count,
        "growth_mib": growth / 2**20,
        "is_bit_identical": all(torch.equal(a, slab.live) for a, slab in zip(first, fuser.slabs, strict=True)),
    }


def _cycle(loop: PublishedLoop, mix: AdapterMix, *, merges: bool) -> None:
    loop.fuse(mix)
    if merges:
        loop.merge()
        loop.unmerge()
    loop.forget()


def _error_of_a_fusion(
    fuser: Fuser, model: CatSeg, reference: CatSeg, library: AdapterLibrary, mix: AdapterMix
) -> float:
    fuser.commit(fuser.prepare(mix))
    return _largest_error(model, reference, library, mix)


def _largest_error(model: CatSeg, reference: CatSeg, library: AdapterLibrary, mix: AdapterMix) -> float:
    """Largest deviation of a fused weight from the float64 sum, relative to its matrix' largest value."""
    largest = 0.0
    for path in model.lora_targets():
        expected = _weight(reference, path).double()
        for name, weight in zip(mix.names, mix.weights, strict=True):
            adapter = library.adapter(name)
            a, b = (torch.as_tensor(matrix).double() for matrix in adapter.layers[path])
            expected = expected + float(weight) * adapter.scaling * (b @ a)
        error = (_weight(model, path).double() - expected).abs().max()
        largest = max(largest, float(error / expected.abs().max()))
    return largest


def _weight(model: CatSeg, path: str) -> torch.Tensor:
    weight = model.get_submodule(path).weight
    assert isinstance(weight, torch.Tensor)
    return weight
