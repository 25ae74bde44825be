"""A world whose answers are known: the closer a fused model is to a domain, the more pixels it gets right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from semla_ros.config import RetrievalConfig
from semla_ros.lab.evaluation.sources import EvaluationImage
from semla_ros.results import AdapterMix

HEIGHT, WIDTH, CLASSES = 12, 16, ("road", "car", "sky")
# Two weathers in two places each, one domain without relatives, and one that no adapter was trained on.
PLACES = {
    "a-fog": (0.0, 0.0), "b-fog": (0.6, 0.0), "a-night": (4.0, 0.0), "b-night": (4.6, 0.0), "c-indoor": (2.0, 9.0),
    "d-fog": (0.3, 0.4), "d-desert": (30.0, 30.0), "clear": (2.0, 2.0),
}  # fmt: skip
ADAPTED = ("a-fog", "b-fog", "a-night", "b-night", "c-indoor")


def family_of(name: str) -> str:
    return name.rsplit("-", 1)[-1]


@dataclass(frozen=True)
class ToyBenchmark:
    """Images whose first channel names the domain, the second the truth, the third random bits."""

    broken: str = ""
    chunk_size: int = 3
    name: str = "world"
    domain_names: tuple[str, ...] = ADAPTED
    unseen_names: tuple[str, ...] = ("d-fog", "d-desert")
    source_names: tuple[str, ...] = ("clear",)

    def family(self, domain: str) -> str:
        return family_of(domain)

    def are_relatives(self, domain: str, other: str) -> bool:
        return family_of(domain) == family_of(other)

    def check(self, names: Sequence[str]) -> None:
        assert all(name in PLACES for name in names)

    def open(self, domain: str) -> ToyDomain:
        return ToyDomain(domain)


class ToyDomain:
    def __init__(self, name: str) -> None:
        self.class_names = CLASSES
        self._index = list(PLACES).index(name)

    def indices(self, seed: int, count: int) -> list[int]:
        return list(range(count))

    def read(self, seed: int, index: int) -> EvaluationImage:
        rng = np.random.default_rng([self._index, seed, index])
        labels = rng.integers(0, len(CLASSES), (HEIGHT, WIDTH)).astype(np.uint8)
        bits = rng.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
        image = np.dstack([np.full_like(labels, self._index), labels, bits])
        labels = labels.copy()
        labels[0, 0] = 255
        return EvaluationImage(
            name=f"{seed}/{index}", scene=image, image=image, labels=labels, answer_size=(HEIGHT, WIDTH)
        )


class ToyRetriever:
    def __init__(self, settings: RetrievalConfig) -> None:
        self._settings = settings

    def retrieve(self, embedding: np.ndarray, exclude: Sequence[str] = ()) -> AdapterMix:
        names = [name for name in ADAPTED if name not in exclude]
        distances = np.array([np.linalg.norm(embedding - np.array(PLACES[name])) for name in names])
        order = np.argsort(distances)[: self._settings.top_k]
        distances = distances[order]
        weights = np.exp((1 / (distances + 0.01) - 1 / (distances[0] + 0.01)) / self._settings.temperature)
        base = 1.0 if self._settings.fade_out_of_library and distances[0] > 15 else 0.0
        weights = (1 - base) * weights / weights.sum()
        return AdapterMix(
            names=tuple(names[item] for item in order), weights=weights, distances=distances, base_weight=base
        )


class ToySubject:
    """Gets a share of the pixels right that grows with the weight of adapters of the image's own kind."""

    adapter_names = ADAPTED
    recommended = RetrievalConfig(temperature=0.3, top_k=3)
    description = {"model": "toy", "library": "toy"}  # noqa: RUF012

    def __init__(self) -> None:
        self.centroids = np.array([PLACES[name] for name in ADAPTED], np.float32)
        self.mix = AdapterMix()
        self.fused: list[AdapterMix] = []
        self.class_lists: list[tuple[str, ...]] = []

    def retriever(self, settings: RetrievalConfig, *, as_published: bool = False) -> ToyRetriever:
        del as_published
        return ToyRetriever(settings)

    def embed(self, image: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(int(image[..., 2].astype(int).sum())).normal(0, 0.05, 2)
        return (np.array(list(PLACES.values())[image[0, 0, 0]]) + noise).astype(np.float32)

    def lacking(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name == "unspeakable"]

    def set_classes(self, names: Sequence[str]) -> None:
        self.class_lists.append(tuple(names))

    def use(self, mix: AdapterMix) -> None:
        self.mix = mix
        self.fused.append(mix)

    def probabilities(self, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        assert size == image.shape[:2]
        quality = 0.35 + self.mix_quality(list(PLACES)[image[0, 0, 0]])
        truth = image[..., 1]
        answer = np.where(image[..., 2] < 256 * quality, truth, (truth + 1) % len(CLASSES))
        return np.eye(len(CLASSES), dtype=np.float32)[answer].transpose(2, 0, 1)

    def mix_quality(self, domain: str) -> float:
        """0 for the base model, 0.6 for the own adapter, 0.5 for a relative, below 0 for strangers."""
        if domain == "clear":
            return 0.6
        gain = {
            name: 0.6 if name == domain else 0.5 if family_of(name) == family_of(domain) else -0.1 for name in ADAPTED
        }
        return sum(weight * gain[name] for name, weight in self.mix.as_dict().items())


@dataclass(frozen=True)
class ToySpec:
    """Loads the toy; picklable for worker processes."""

    fails: bool = False

    def load(self, threads: int) -> ToySubject:
        del threads
        return ToySubject()


def renamed(benchmark: ToyBenchmark, **changes: object) -> ToyBenchmark:
    return replace(benchmark, **changes)
