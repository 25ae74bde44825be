"""When the mix is to change: slowly while the scene is steady, within two looks where it is another one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semla_ros.config import DriftConfig
from semla_ros.errors import ImageError
from semla_ros.results import BASE_MODEL, AdapterMix, FloatArray
from semla_ros.timing import JUMP_BACK_NS

JITTER = 0.02  # part of a period by which a frame may come early and still count: cameras do not tick exactly
LEAST_LOOKS = 8  # that an average is made of, however far apart they are
SPREAD_S = 60.0  # time constant of the scene's spread, which is the encoder's and the street's more than the weather's
# What makes another scene, as measured on rendered drives (docs/gate.md).
STANDS_OFF = 2.0  # spreads of the scene that it lies away from it
LIES_TOGETHER = 1 / 3  # its looks' distance from each other, as a part of that from the scene
STEP_SHARE = 0.75  # of the mix that changes
LEAST_STEP_S = 0.2  # that it has been seen for: at 30 Hz two looks are one splash on the lens
LASTS = 0.4  # of `steady_s`: what the share beyond `mix_threshold`, summed over time, must reach
LONGEST_RUN = 6  # looks in a row that stand off without lying together, after which the scene is given up
BURST = 0.4  # part of a minute's fusions that may follow each other at once
LEAST_WEIGHT = 1e-4  # below it an adapter is forgotten: an average would keep all that it has ever seen


@dataclass(frozen=True, kw_only=True, eq=False)
class GateDecision:
    """What the gate makes of one look at the scene.

    Attributes:
        has_drifted: `mix` is to be put into use now.
        is_dwelling: The mix would change by more than `mix_threshold`, but that has to last, or the cap is reached.
        drift: Share of the mix that would change, 0..1; None where there is no scene yet to compare with.
        mix: The mix for the scene.
        scene: Embedding of the scene, shape (D,), float32: the mean of the looks that `mix` is made of.
    """

    has_drifted: bool
    is_dwelling: bool
    drift: float | None
    mix: AdapterMix
    scene: NDArray[np.float32]


class DriftGate:
    """Follows one stream of scene embeddings and of the mixes retrieved for them; time is the images' own.

    While the scene is steady, mixes are averaged with the time constant `steady_s`. A cumulative sum (CUSUM) of what
    the average differs from the mix in use beyond `mix_threshold` decides: large differences must last for seconds,
    small ones longer. The average starts over at once where the scene is another one: two looks in a row stand off by
    more than twice the scene's own spread, lie together, and ask for another mix. A look that stands off alone changes
    nothing. Fusions are capped by a token bucket; where it is empty, whatever comes counts towards the average, so that
    a scene that flickers faster gets a blend.

    Distances are compared with the stream's own spread alone, so no setting depends on the scene encoder.

    Not thread-safe.

    Args:
        config: Rate, threshold, time constant and cap.

    Source: CUSUM, Page, Continuous inspection schemes (Biometrika 1954); control limits with a run rule, Western
    Electric, Statistical Quality Control Handbook (1956).
    """

    def __init__(self, config: DriftConfig | None = None) -> None:
        self.config = config or DriftConfig()
        self.reset()

    def reset(self) -> None:
        """Start over: the next look is a new scene, whose mix is put into use."""
        self._claimed_ns: int | None = None  # stamp of the last frame that was let through
        self._updated_ns: int | None = None
        self._spread = _Spread()
        self._tokens = self._most_tokens
        self._is_owed = False  # a mix was decided on, and is not in use
        self._mean = _MeanEmbedding()
        self.forget_mixes()
        self._drop_run()

    def forget_mixes(self) -> None:
        """What was retrieved so far counts no longer, as where library or settings have changed."""
        self._average = _AverageMix()
        self._excess = 0.0  # share of the mix x s

    def _drop_run(self) -> None:
        """No look stands off."""
        self._run = 0
        self._run_began_ns = 0
        self._latest: NDArray[np.float64] | None = None  # of the run
        self._latest_distance = 0.0
        self._run_square: float | None = None  # of the latest's distance, until it is known what it was

    def should_embed(self, stamp_ns: int) -> bool:
        """Whether this frame is to be embedded; saying so claims the slot, so ask once per frame.

        A stamp that jumps back resets the gate.
        """
        if self._claimed_ns is not None and stamp_ns < self._claimed_ns - JUMP_BACK_NS:
            self.reset()
        period_ns = 1e9 / self.config.retrieval_rate_hz
        if self._claimed_ns is not None and stamp_ns - self._claimed_ns < period_ns * (1 - JITTER):
            return False
        self._claimed_ns = stamp_ns
        return True

    def update(self, embedding: FloatArray, mix: AdapterMix, in_use: AdapterMix, stamp_ns: int) -> GateDecision:
        """Take in one look at the scene.

        Args:
            embedding: Of the frame, shape (D,).
            mix: Retrieved for it.
            in_use: The mix that serves.
            stamp_ns: The frame's stamp.

        Returns:
            Whether to fuse, and what; after a mix was put into use, call `accept`.

        Raises:
            ImageError: The embedding is not finite; the gate stays as it was.
        """
        look = np.asarray(embedding, np.float64).reshape(-1)
        if not np.isfinite(look).all():
            raise ImageError("scene embedding has values that are not finite; check the image and the scene encoder")
        if self._updated_ns is not None and stamp_ns < self._updated_ns - JUMP_BACK_NS:
            self.reset()
        elapsed_s = self._elapse(stamp_ns)
        if not self._mean.count:
            self._begin(look, mix)
            return self._decision(True, False, None)
        distance = self._mean.distance(look)
        stands_off = distance > STANDS_OFF * self._spread.value and self._tokens >= 1
        is_another = stands_off and self._is_another_scene(look, distance, stamp_ns)
        if not is_another and self._run_square is not None:
            self._spread.add(self._run_square, elapsed_s)  # the look before was none of another scene
        square = distance**2 * self._mean.count / (self._mean.count + 1)
        if is_another:
            if (drift := mix.difference(in_use)) > STEP_SHARE:
                self._begin(look, mix)
                return self._decision(True, False, drift)
            self._mean = _MeanEmbedding()  # it looks otherwise and asks for about the same mix: the average goes on
        elif stands_off:
            self._run_square = square
            drift = mix.difference(in_use)
            return self._decision(False, drift > self.config.mix_threshold, drift)
        else:
            self._spread.add(square, elapsed_s)
        self._drop_run()
        self._mean.add(look, self._share(elapsed_s, self._mean.count))
        self._average.add(mix, self._share(elapsed_s, self._average.count))
        drift = self._average.mix().difference(in_use)
        has_lasted = self._has_lasted(drift, elapsed_s)
        is_due = (has_lasted or (self._is_owed and drift > self.config.mix_threshold)) and self._tokens >= 1
        return self._decision(is_due, drift > self.config.mix_threshold and not is_due, drift)

    def accept(self, mix: AdapterMix) -> None:
        """This mix is in use since the latest look; where it is not the one decided on, the average goes on from it."""
        self._tokens = max(0.0, self._tokens - 1)
        self._is_owed = False
        self._excess = 0.0
        if mix.id != self._average.mix().id:
            self._average = _AverageMix()
            self._average.add(mix, 1.0)

    @property
    def _most_tokens(self) -> float:
        return max(1.0, BURST * self.config.max_fusions_per_min)

    def _elapse(self, stamp_ns: int) -> float:
        """Seconds since the latest look, for which the bucket fills: no minute sees more fusions than the cap."""
        elapsed_s = 0.0 if self._updated_ns is None else max(0, stamp_ns - self._updated_ns) / 1e9
        self._updated_ns = max(stamp_ns, self._updated_ns or stamp_ns)
        per_s = (self.config.max_fusions_per_min - self._most_tokens + 1) / 60
        self._tokens = min(self._most_tokens, self._tokens + elapsed_s * per_s)
        return elapsed_s

    def _begin(self, look: NDArray[np.float64], mix: AdapterMix) -> None:
        self._mean = _MeanEmbedding()
        self._mean.add(look, 1.0)
        self.forget_mixes()
        self._average.add(mix, 1.0)
        self._drop_run()

    def _is_another_scene(self, look: NDArray[np.float64], distance: float, stamp_ns: int) -> bool:
        """Whether the looks in a row that stand off, with this one, make another scene."""
        if self._latest is None:
            self._run_began_ns = stamp_ns
            lies_together = False
        else:
            nearest = min(distance, self._latest_distance)
            lies_together = float(np.linalg.norm(look - self._latest)) < LIES_TOGETHER * nearest
        self._run += 1
        self._latest, self._latest_distance = look, distance
        has_lasted = stamp_ns - self._run_began_ns >= LEAST_STEP_S * 1e9 * (1 - JITTER)
        return has_lasted and (lies_together or self._run >= LONGEST_RUN)

    def _has_lasted(self, drift: float, elapsed_s: float) -> bool:
        """Whether the mix has been off for long enough; however far apart looks are, one alone does not make it so."""
        beyond, enough = drift - self.config.mix_threshold, LASTS * self.config.steady_s
        self._excess = max(0.0, self._excess + min(elapsed_s, enough / 2) * beyond)
        return beyond > 0 and self._excess >= enough

    def _share(self, elapsed_s: float, count: int) -> float:
        return share_of_next(elapsed_s, self.config.steady_s, count)

    def _decision(self, has_drifted: bool, is_dwelling: bool, drift: float | None) -> GateDecision:
        self._is_owed = self._is_owed or has_drifted
        return GateDecision(
            has_drifted=has_drifted,
            is_dwelling=is_dwelling,
            drift=drift,
            mix=self._average.mix(),
            scene=self._mean.value.astype(np.float32),
        )


def share_of_next(elapsed_s: float, constant_s: float, count: int) -> float:
    """Share that the next value gets in an average of `count` ones so far: a plain mean until the time constant rules.

    Args:
        elapsed_s: Since the latest value.
        constant_s: Time constant of the average.
        count: Values in it.
    """
    by_time = 1.0 - math.exp(-elapsed_s / constant_s) if constant_s > 0 else 1.0
    return max(1.0 / (count + 1), min(1.0 / LEAST_LOOKS, by_time))


class _MeanEmbedding:
    """Where the present scene lies."""

    def __init__(self) -> None:
        self.value: NDArray[np.float64] = np.zeros(0)
        self.count = 0

    def add(self, look: NDArray[np.float64], share: float) -> None:
        self.value = look if not self.count else self.value + share * (look - self.value)
        self.count += 1

    def distance(self, look: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(look - self.value))


class _Spread:
    """How far looks usually lie from their scene: the root of the mean square, on which no single one has a hold."""

    def __init__(self) -> None:
        self._mean_square = 0.0
        self._count = 0

    @property
    def value(self) -> float:
        """Zero until two looks are known; wider than measured as long as they are few."""
        return math.sqrt(self._mean_square) * (1 + 2 / self._count) if self._count >= 2 else 0.0

    def add(self, square: float, elapsed_s: float) -> None:
        if self._count >= 2:
            square = min(square, (STANDS_OFF * self.value) ** 2)
        self._mean_square += share_of_next(elapsed_s, SPREAD_S, self._count) * (square - self._mean_square)
        self._count += 1


class _AverageMix:
    """The mean of the mixes of a scene's looks."""

    def __init__(self) -> None:
        self.count = 0
        self._shares: dict[str, float] = {}
        self._distances: dict[str, float] = {}  # latest known
        self._outside = 0.0  # share of looks that lie outside the library
        self._most = 0  # adapters in one mix
        self._made: AdapterMix | None = None

    def add(self, mix: AdapterMix, share: float) -> None:
        share = share if self.count else 1.0
        self.count += 1
        shares = {name: (1 - share) * weight for name, weight in self._shares.items()}
        for name, weight in mix.shares().items():
            shares[name] = shares.get(name, 0.0) + share * weight
        self._shares = {name: weight for name, weight in shares.items() if weight >= LEAST_WEIGHT}
        known = {**self._distances, **dict(zip(mix.names, mix.distances.tolist(), strict=True))}
        self._distances = {name: known[name] for name in self._shares if name in known}
        self._outside += share * (mix.is_out_of_library - self._outside)
        self._most = max(self._most, len(mix.names))
        self._made = mix if self.count == 1 else None

    def mix(self) -> AdapterMix:
        """As many adapters as the largest of the mixes has, the heaviest ones; the first mix itself as it is."""
        if not self.count:
            return AdapterMix()
        if self._made is None:
            adapters = {name: weight for name, weight in self._shares.items() if name != BASE_MODEL}
            names = tuple(sorted(adapters, key=lambda name: -adapters[name])[: self._most])
            weights = np.array([adapters[name] for name in names])
            weights = weights / (weights.sum() + self._shares.get(BASE_MODEL, 0.0))
            self._made = AdapterMix(
                names=names,
                weights=weights,
                distances=np.array([self._distances[name] for name in names]),
                base_weight=max(0.0, 1.0 - float(weights.sum())),
                is_out_of_library=self._outside > 0.5,
            )
        return self._made
