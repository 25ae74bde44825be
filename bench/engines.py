"""The fixed components in every runtime that is installed, against torch in fp32: time, and how far answers differ."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.random_world import Size, random_encoder, random_image, random_model
from bench.threads import torch_threads
from bench.timing import time_alternating
from semla_ros.adaptation.retrieval import Retriever
from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.config import RetrievalConfig
from semla_ros.engines.cache import EngineCache
from semla_ros.engines.choice import find_runtimes
from semla_ros.engines.component_engine import ComponentEngine, Runner
from semla_ros.engines.components import fixed_components
from semla_ros.engines.gates import largest_deviation, parity_problem, smallest_cosine
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.lab.world.cities import CITIES
from semla_ros.lab.world.conditions import Conditions
from semla_ros.lab.world.render import render
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.resources import find_model, model_library
from semla_ros.results import ImageArray
from semla_ros.segmentation.checkpoint import load_model
from semla_ros.segmentation.fixed_component import FixedComponent

SHIPPED = "semla-tiny"
CLASSES = 19
WEATHERS = tuple(
    Conditions(night=night, fog=fog, rain=rain) for night in (0, 0.8) for fog in (0, 0.7) for rain in (0, 0.7)
)


def measure(size: Size, repeats: int = 5) -> dict[str, object]:
    """Time one image in turns on one thread; figures for `engines`.

    At tiny size these are the shipped scene encoder and decoder, and the library shows what each runtime does to
    retrieval. At the other sizes weights are random.
    """
    is_shipped = size == "tiny"
    encoder = SceneEncoder.load(find_model(SHIPPED)) if is_shipped else random_encoder(size)
    scenes = _scenes() if is_shipped else [random_image(192, 256, seed=seed) for seed in range(2)]
    (component,) = fixed_components(None, encoder, probe_scenes=scenes[:4])
    image = component.inputs[0][:1]
    with tempfile.TemporaryDirectory() as folder, torch_threads(1), torch.inference_mode():
        runners = _runners(component, EngineCache(Path(folder)))
        calls: list[Callable[[], object]] = [lambda: component.original(image)]
        calls += [lambda runner=runner: runner(image) for runner in runners]
        torch_fp32, *others = time_alternating(calls, repeats, warm_up=2)
        expected = component.original(*component.inputs)
        figures: dict[str, Any] = {"image": list(image.shape[2:]), "threads": 1, "torch": torch_fp32.as_dict()}
        for runner, timing in zip(runners, others, strict=True):
            given = runner(*component.inputs)
            cosine, deviation = smallest_cosine(given, expected), largest_deviation(given, expected)
            figures[runner.runtime] = timing.as_dict() | {
                "speedup": torch_fp32.median / timing.median,
                "speedup_of_best": torch_fp32.best / timing.best,
                "cosine": cosine,
                "deviation": deviation,
                "passes_parity": not parity_problem(cosine, deviation),
            }
        if is_shipped:
            figures["retrieval"] = _retrieval(component, encoder, runners, scenes)
    right = [runner.runtime for runner in runners if figures[runner.runtime]["passes_parity"]]
    fastest = min(right, key=lambda name: figures[name]["median_ms"], default="torch")
    fastest_speedup = figures[fastest].get("speedup", 1.0)
    return figures | {"fastest": fastest, "speedup_of_fastest": fastest_speedup, "decoder": _decoder(size, repeats)}


def _decoder(size: Size, repeats: int) -> dict[str, object]:
    """The decoder with its guidance, which no engine serves on a CPU, in fp32."""
    (component,) = fixed_components(
        load_model(find_model(SHIPPED)).model if size == "tiny" else random_model(size), None
    )
    maps = torch.randn(CLASSES, *component.inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    inputs = (maps, *component.inputs[1:])
    with tempfile.TemporaryDirectory() as folder, torch_threads(1), torch.inference_mode():
        runners = [item for item in _runners(component, EngineCache(Path(folder))) if "bf16" not in item.runtime]
        calls: list[Callable[[], object]] = [lambda: component.original(*inputs)]
        calls += [lambda runner=runner: runner(*inputs) for runner in runners]
        timings = time_alternating(calls, repeats, warm_up=1)
    names = ["torch", *(runner.runtime for runner in runners)]
    return {"classes": CLASSES} | {name: timing.as_dict() for name, timing in zip(names, timings, strict=True)}


def _runners(component: FixedComponent, cache: EngineCache) -> list[Runner]:
    runtimes = find_runtimes("auto", torch.device("cpu"), cache=cache, threads=1)
    made = [make() for runtime in runtimes for make in runtime.makers(component)]
    return [runner for runner in made if runner is not None]


def _scenes() -> list[ImageArray]:
    """A street of every city in clear and mixed weather, day and night."""
    return [
        render(city=city, seed=seed, conditions=weather).image
        for city in CITIES
        for seed, weather in enumerate(WEATHERS)
    ]


def _retrieval(
    component: FixedComponent, encoder: SceneEncoder, runners: Sequence[Runner], scenes: Sequence[ImageArray]
) -> dict[str, object]:
    """What each runtime does to the weights of the shipped adapters, against torch in fp32."""
    library = AdapterLibrary.load(model_library(SHIPPED), encoder_id=encoder.id, encoder_dim=encoder.dim)
    retriever = Retriever(library, library.manifest.retrieval or RetrievalConfig())

    def weights(image: ImageArray) -> np.ndarray:
        mix = retriever.retrieve(encoder.embed(image))
        given = dict(zip(mix.names, mix.weights, strict=True))
        return np.array([*(given.get(name, 0.0) for name in library.names), mix.base_weight])

    expected = np.stack([weights(image) for image in scenes])
    rows: dict[str, object] = {"scenes": len(scenes)}
    for runner in runners:
        with component.mount(runner):
            given = np.stack([weights(image) for image in scenes])
        change = np.abs(given - expected).max(axis=1)
        rows[runner.runtime] = {
            "largest_weight_change": float(change.max()),
            "median_weight_change": float(np.median(change)),
            "same_heaviest": float(np.mean(given.argmax(axis=1) == expected.argmax(axis=1))),
            "same_adapters": float(np.mean(((given > 0) == (expected > 0)).all(axis=1))),
        }
    return rows


@contextmanager
def fastest_scene_encoder(
    torch_engine: TorchEngine, encoder: SceneEncoder, cache: EngineCache, threads: int
) -> Iterator[str]:
    """The scene encoder as it is served once `semla engine build` has run; yields the name of what serves.

    Args:
        torch_engine: Of the pipeline, with a vocabulary.
        encoder: Of the pipeline; goes back to torch at the end.
        cache: Where the exported encoder is kept.
        threads: CPU threads.
    """
    scenes = [random_image(192, 256, seed=seed) for seed in range(2)]
    components = fixed_components(None, encoder, probe_scenes=scenes)
    runtimes = find_runtimes("auto", torch_engine.device, cache=cache, threads=threads)
    engine = ComponentEngine(torch_engine, components, runtimes, probe_images=[])
    engine.warm_up()
    try:
        yield engine.name
    finally:
        engine.release()
