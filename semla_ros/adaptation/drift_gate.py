"""When the mix is to change: slowly while the scene is steady, at the second look of another one, at the first where it
is the one before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
FAR, LIES_NEARLY = 8.0, 1 / 2  # where they lie so many spreads away, this distance will do: the change is not over yet
IS_BACK = 1 / 2  # a look's distance from the scene before, likewise: the mean of a scene is surer than one look
STEP_SHARE = 0.75  # of the mix that changes
LEAST_STEP_S = 0.2  # that it has been seen for: at 30 Hz two looks are one splash on the lens
LONGEST_RUN = 6  # looks in a row that stand off without lying together, after which the scene is given up
TRIAL = (4, 1.5)  # looks and seconds after which a recall is given up where none of them asks for its mix
# What corrects the mix of one and the same scene.
LASTS = 0.6  # of `steady_s`: what the share beyond `mix_threshold`, summed over time, must reach
SETTLED = (6, 2.5)  # looks and seconds after which a new scene's mix, that of its first looks, is corrected at once
RESTS = 6.0  # of `steady_s`: from one correction to the next
BURST = 0.4  # part of a minute's fusions that may follow each other at once
LEAST_WEIGHT = 1e-4  # below it an adapter is forgotten: an average would keep all that it has ever seen


@dataclass(frozen=True, kw_only=True, eq=False)
class GateDecision:
    """What the gate makes of one look at the scene.

    Attributes:
        has_drifted: `mix` is to be put into use now.
        is_recall: It is the mix that served before this one, and still stands by: nothing has to be fused.
        is_dwelling: The mix would change by more than `mix_threshold`, but that has to last, or the cap is reached.
        drift: Share of the mix that would change, 0..1; None where there is no scene yet to compare with.
        mix: The mix for the scene.
        scene: Embedding of the scene, shape (D,), float32: the mean of the looks that `mix` is made of.
    """

    has_drifted: bool
    is_recall: bool
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
    nothing, unless it is back in the scene before, whose mix still stands by: that mix is recalled, which is no fusion,
    and given up again where the first four looks all ask for another one. Fusions are capped by a token bucket; where
    it is empty, whatever comes counts towards the average, so that what flickers between more scenes than two gets a
    blend.

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
        self._run: list[_Look] = []  # looks in a row that stand off from the scene
        self._trial: list[_Look] | None = None  # looks since a recall, none of which asks for its mix
        self._scene = _Scene(0, self.config.steady_s)
        self._serves: _Scene | None = None  # whose mix is in use
        self._before: _Scene | None = None  # whose mix was in use before, where that is another one

    def forget_mixes(self) -> None:
        """What was retrieved so far counts no longer, as where library or settings have changed."""
        self._scene.average, self._scene.excess = _AverageMix(), 0.0
        self._before = None

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

    def update(
        self,
        embedding: FloatArray,
        mix: AdapterMix,
        in_use: AdapterMix,
        stamp_ns: int,
        stands_by: AdapterMix | None = None,
    ) -> GateDecision:
        """Take in one look at the scene.

        Args:
            embedding: Of the frame, shape (D,).
            mix: Retrieved for it.
            in_use: The mix that serves.
            stamp_ns: The frame's stamp.
            stands_by: The mix that served before, where it can be put into use again without a fusion.

        Returns:
            Whether to change the mix, and to what; after that was done, call `accept`.

        Raises:
            ImageError: The embedding is not finite; the gate stays as it was.
        """
        value = np.asarray(embedding, np.float64).reshape(-1)
        if not np.isfinite(value).all():
            raise ImageError("scene embedding has values that are not finite; check the image and the scene encoder")
        if self._updated_ns is not None and stamp_ns < self._updated_ns - JUMP_BACK_NS:
            self.reset()
        elapsed_s = self._elapse(stamp_ns)
        look = _Look(value, mix, stamp_ns, self._scene.distance(value))
        decision = self._judge(look, in_use, elapsed_s, stands_by)
        if decision.has_drifted or self._trial is None:
            return decision
        if mix.difference(in_use) <= STEP_SHARE:
            self._trial = None
            return decision
        self._trial.append(look)
        if self._tokens < 1 or len(self._trial) < TRIAL[0] or _lasted_s(self._trial) < TRIAL[1] * (1 - JITTER):
            return decision
        self._begin(self._trial)
        return self._decision(True, self._scene.average.mix().difference(in_use))

    def _judge(self, look: _Look, in_use: AdapterMix, elapsed_s: float, stands_by: AdapterMix | None) -> GateDecision:
        """Whether this look, with those before it, corrects the scene's mix, makes another scene or is back in one."""
        if not self._scene.looks:
            self._begin([look])
            return self._decision(True, None)
        stands_off = look.distance > STANDS_OFF * self._spread.value
        if stands_off and stands_by is not None and (before := self._returned_to(look, stands_by)) is not None:
            self._scene, self._run = before, []
            before.add(look, elapsed_s)
            return self._decision(True, stands_by.difference(in_use), recalled=stands_by)
        if stands_off and self._tokens >= 1:
            self._run.append(look)
            if not self._is_another_scene():
                self._note_spread(self._run[-2:-1], elapsed_s)
                return self._decision(False, look.mix.difference(in_use))
            begun = [earlier for earlier in self._run if earlier.lies_with(look)]
            if (drift := _AverageMix.of(begun).mix().difference(in_use)) > STEP_SHARE:
                self._begin(begun)
                return self._decision(True, drift)
            self._scene.forget_place()  # it looks otherwise and asks for about the same mix: the average goes on
        else:
            self._note_spread([*self._run[-1:], look], elapsed_s)
        self._run = []
        self._scene.add(look, elapsed_s)
        drift = self._scene.average.mix().difference(in_use)
        return self._decision(self._is_due(drift, elapsed_s, look.stamp_ns), drift)

    def accept(self, mix: AdapterMix, *, is_recall: bool = False) -> None:
        """This mix is in use since the latest look; where it is not the one decided on, the average goes on from it.

        Args:
            mix: What serves.
            is_recall: It stood by, and was not fused.
        """
        self._is_owed, self._scene.excess = False, 0.0
        self._before = None if self._serves is self._scene else self._serves  # its weights stand by only then
        self._serves = self._scene
        self._trial = [] if is_recall else None
        if is_recall:
            return
        self._tokens = max(0.0, self._tokens - 1)
        self._scene.fused_id = mix.id
        if mix.id != self._scene.average.mix().id:
            self._scene.average = _AverageMix()
            self._scene.average.add(mix, 1.0)

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

    def _begin(self, looks: Sequence[_Look]) -> None:
        self._scene, self._run = _Scene(looks[0].stamp_ns, self.config.steady_s), []
        for look in looks:
            self._scene.add(look, 0.0)

    def _returned_to(self, look: _Look, stands_by: AdapterMix) -> _Scene | None:
        """The scene before, where it can be recalled and the look is one of it.

        What lies outside the library is nothing to go back to for a single look: it may be one black image.
        """
        before = self._before
        if before is None or before.fused_id != stands_by.id:
            return None
        witnesses = [*self._run[-1:], look] if look.mix.is_out_of_library else [look]
        if look.mix.is_out_of_library and len(witnesses) < 2:
            return None
        is_back = all(before.distance(seen.value) < IS_BACK * seen.distance for seen in witnesses)
        return before if is_back else None

    def _is_another_scene(self) -> bool:
        """Whether the looks in a row that stand off make another scene."""
        latest = self._run[-1]
        has_lasted = _lasted_s(self._run) >= LEAST_STEP_S * (1 - JITTER)
        before = self._run[-2:-1]
        nearest = min(look.distance for look in (*before, latest))
        share = LIES_NEARLY if nearest > FAR * self._spread.value else LIES_TOGETHER
        lies_together = any(look.lies_with(latest, share) for look in before)
        return has_lasted and (lies_together or len(self._run) >= LONGEST_RUN)

    def _note_spread(self, looks: Sequence[_Look], elapsed_s: float) -> None:
        """These looks are of the scene, or of none: in a run, that is known of a look when the next one is seen."""
        for look in looks:
            self._spread.add(self._scene.square(look), elapsed_s)

    def _is_due(self, drift: float, elapsed_s: float, stamp_ns: int) -> bool:
        """Whether the mix of this scene is to be corrected; however far apart looks are, one alone does not do it."""
        scene, beyond, enough = self._scene, drift - self.config.mix_threshold, LASTS * self.config.steady_s
        scene.excess = max(0.0, scene.excess + min(elapsed_s, enough / 2) * beyond)
        has_lasted = scene.has_just_settled(stamp_ns) or scene.excess >= enough
        if beyond <= 0 or self._tokens < 1 or not (self._is_owed or (has_lasted and stamp_ns >= scene.rests_until_ns)):
            return False
        scene.rests_until_ns = stamp_ns + round(RESTS * self.config.steady_s * 1e9)
        return True

    def _decision(self, has_drifted: bool, drift: float | None, recalled: AdapterMix | None = None) -> GateDecision:
        self._is_owed = self._is_owed or has_drifted
        return GateDecision(
            has_drifted=has_drifted,
            is_recall=recalled is not None,
            is_dwelling=not has_drifted and drift is not None and drift > self.config.mix_threshold,
            drift=drift,
            mix=recalled or self._scene.average.mix(),
            scene=self._scene.place.astype(np.float32),
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


@dataclass(frozen=True, eq=False)
class _Look:
    """One look at the scene, and how far from the scene it lies."""

    value: NDArray[np.float64]  # (D,)
    mix: AdapterMix
    stamp_ns: int
    distance: float

    def lies_with(self, other: _Look, share: float = LIES_TOGETHER) -> bool:
        nearest = min(self.distance, other.distance)
        return self is other or float(np.linalg.norm(self.value - other.value)) < share * nearest


def _lasted_s(looks: Sequence[_Look]) -> float:
    return (looks[-1].stamp_ns - looks[0].stamp_ns) / 1e9


class _Scene:
    """Where the looks at one scene lie, and the mean of the mixes retrieved for them."""

    def __init__(self, began_ns: int, steady_s: float) -> None:
        self._began_ns, self._steady_s = began_ns, steady_s
        self._has_settled = False
        self.place: NDArray[np.float64] = np.zeros(0)
        self.looks = 0  # that `place` is made of
        self.average = _AverageMix()
        self.excess = 0.0  # CUSUM of the share beyond the threshold, share of the mix x s
        self.rests_until_ns = 0  # after a correction
        self.fused_id = ""  # of the mix that was put into use for it

    def add(self, look: _Look, elapsed_s: float) -> None:
        share = share_of_next(elapsed_s, self._steady_s, self.looks)
        self.place = look.value if not self.looks else self.place + share * (look.value - self.place)
        self.looks += 1
        self.average.add(look.mix, share_of_next(elapsed_s, self._steady_s, self.average.count))

    def forget_place(self) -> None:
        self.looks = 0

    def distance(self, value: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(value - self.place)) if self.looks else 0.0

    def square(self, look: _Look) -> float:
        """Of the look's distance, as if the place were known exactly."""
        return look.distance**2 * self.looks / (self.looks + 1)

    def has_just_settled(self, stamp_ns: int) -> bool:
        """True once, when it has been looked at for long enough to know its mix."""
        looks, seconds = SETTLED
        had, age_s = self._has_settled, (stamp_ns - self._began_ns) / 1e9
        self._has_settled = had or (self.average.count >= looks and age_s >= seconds * (1 - JITTER))
        return self._has_settled and not had


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

    @classmethod
    def of(cls, looks: Sequence[_Look]) -> _AverageMix:
        """Their plain mean."""
        average = cls()
        for look in looks:
            average.add(look.mix, 1 / (average.count + 1))
        return average

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
