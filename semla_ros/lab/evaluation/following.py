"""How well the mix follows a drive: fusions, delay, family and mIoU of the gate beside simpler ways and the oracle."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semla_ros.adaptation.drift_gate import DriftGate
from semla_ros.config import DriftConfig
from semla_ros.lab.evaluation.aggregate import number
from semla_ros.lab.evaluation.drives import CALM_S, SUDDEN_S, WEATHERS, GateDrive
from semla_ros.lab.evaluation.miou import MiouMeter
from semla_ros.lab.evaluation.sources import WorldBenchmark
from semla_ros.lab.evaluation.variants import equal_mix
from semla_ros.lab.tasks import run_each
from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.lab.world.domains import BENCHMARK
from semla_ros.results import BASE_MODEL, AdapterMix, FloatArray

if TYPE_CHECKING:
    from semla_ros.lab.evaluation.subject import PipelineSpec, PipelineSubject  # load torch

Retrieve = Callable[[FloatArray], AdapterMix]
WAYS = ("base model", "oracle", "every look", "former gate", "gate")


@dataclass(frozen=True, kw_only=True, eq=False)
class Look:
    """One look at the scene.

    Attributes:
        stamp_ns: When.
        embedding: Shape (D,).
        mix: Retrieved for it.
    """

    stamp_ns: int
    embedding: FloatArray
    mix: AdapterMix


@dataclass(frozen=True, kw_only=True, eq=False)
class Followed:
    """What one way of following made of a drive: the mix in use after each look; which looks fused or recalled it."""

    mixes: Sequence[AdapterMix]
    fused: Sequence[bool]
    recalled: Sequence[bool] = ()  # none where empty


def follow(
    way: str, looks: Sequence[Look], drift: DriftConfig, retrieve: Retrieve, drive: GateDrive | None = None
) -> Followed:
    """Follow a drive.

    Args:
        way: One of `WAYS`; the oracle needs `drive`.
        looks: In order of time.
        drift: Settings of the gate.
        retrieve: The mix for an embedding.
        drive: What the looks are of.
    """
    if way == "gate":
        return _followed_by_gate(looks, DriftGate(drift))
    if way == "former gate":
        return _followed_by_former_gate(looks, retrieve)
    if way == "every look":
        return Followed(mixes=[look.mix for look in looks], fused=[True] * len(looks))
    if way == "base model" or drive is None:
        return Followed(mixes=[AdapterMix()] * len(looks), fused=[False] * len(looks))
    mixes = [oracle_mix(drive, look.stamp_ns / 1e9) for look in looks]
    changed = [index == 0 or mix.id != mixes[index - 1].id for index, mix in enumerate(mixes)]
    return Followed(mixes=mixes, fused=changed)


def _followed_by_gate(looks: Sequence[Look], gate: DriftGate) -> Followed:
    """As in a node whose memory holds two sets of weights, so that the mix before can be recalled."""
    mixes, fused, recalled, in_use, stands_by = [], [], [], AdapterMix(), None
    for look in looks:
        decision = gate.update(look.embedding, look.mix, in_use, look.stamp_ns, stands_by)
        if decision.has_drifted:
            in_use, stands_by = decision.mix, in_use
            gate.accept(in_use, is_recall=decision.is_recall)
        mixes.append(in_use)
        fused.append(decision.has_drifted and not decision.is_recall)
        recalled.append(decision.is_recall)
    return Followed(mixes=mixes, fused=fused, recalled=recalled)


def _followed_by_former_gate(looks: Sequence[Look], retrieve: Retrieve) -> Followed:
    """The gate of earlier releases as the shipped library set it: moves of an embedding smoothed over 0.5 s."""
    threshold, release = 0.3, 0.12
    mixes, fused, in_use = [], [], AdapterMix()
    smoothed = reference = looks[0].embedding
    before_ns, ends_ns, accepted_ns = looks[0].stamp_ns, looks[0].stamp_ns + 2_500_000_000, None
    for look in looks:
        share = 1 - np.exp(-(look.stamp_ns - before_ns) / 1e9 / 0.5)
        smoothed, before_ns = smoothed + share * (look.embedding - smoothed), look.stamp_ns
        move = float(np.linalg.norm(smoothed - reference) / np.linalg.norm(reference))
        if move > threshold:
            ends_ns = look.stamp_ns + 2_500_000_000
        elif move <= release or look.stamp_ns > ends_ns:
            ends_ns = -1
        is_due = accepted_ns is None or (ends_ns >= 0 and look.stamp_ns - accepted_ns >= 490_000_000)
        if is_due:
            in_use, reference, accepted_ns = retrieve(smoothed), smoothed, look.stamp_ns
        mixes.append(in_use)
        fused.append(is_due)
    return Followed(mixes=mixes, fused=fused)


def oracle_mix(drive: GateDrive, time_s: float) -> AdapterMix:
    """What one takes who knows the weather: the adapters of just these conditions, the city's own where it has one."""
    names: dict[str, None] = {}
    for weather in drive.weathers(time_s):
        wanted = {name for name, severity in vars(WEATHERS[weather]).items() if severity > 0}
        fitting = [domain for domain in BENCHMARK.values() if not domain.mixed and set(domain.severities) == wanted]
        fitting = [domain for domain in fitting if domain.cities != ("garage",)]
        own = [domain for domain in fitting if drive.drive.city in domain.cities]
        names |= dict.fromkeys(domain.name for domain in own or fitting)
    return equal_mix(list(names))


def scores(drive: GateDrive, followed: Followed) -> dict[str, Any]:
    """What a way of following is worth on a drive, without looking at a mask.

    Returns:
        "minutes", "fusions" (without the first, which every drive begins with), "fusions_per_min", "most_in_a_minute";
        "recalls_per_min": mixes put into use again that still stood by, which no fusion was needed for;
        "wrong_family": share of looks whose mix is heaviest in a family that the weather is not of; "right_weight":
        mean weight of the right families; "delay_s": longest time from an event to the first right mix, None where
        there is no event; "event_fusions": most fusions that an event took.
    """
    times = np.array(drive.times_s())
    measured = times >= drive.scored_from_s
    fused = np.array(followed.fused) & (np.arange(len(times)) > 0)
    fused_s = times[fused & measured]
    recalls = int((np.array(followed.recalled or np.zeros(len(times), bool)) & measured).sum())
    families = [drive.families(time) for time in times]
    known = measured & np.array([bool(family) for family in families])
    right = np.array([is_right(mix, family) for mix, family in zip(followed.mixes, families, strict=True)])
    weights = np.array([weight_of(mix, family) for mix, family in zip(followed.mixes, families, strict=True)])
    minutes = (drive.duration_s - drive.scored_from_s) / 60
    begins = [drive.black_s[0] if drive.black_s[1] == event else event for event in drive.events_s]
    return {
        "minutes": minutes,
        "fusions": len(fused_s),
        "fusions_per_min": number(len(fused_s) / minutes, 3),
        "recalls_per_min": number(recalls / minutes, 3),
        "most_in_a_minute": max((int(((fused_s >= at) & (fused_s < at + 60)).sum()) for at in fused_s), default=0),
        "wrong_family": number(1 - float(right[known].mean())),
        "right_weight": number(float(weights[known].mean())),
        "delay_s": max((_delay_s(event, times, right & known) for event in drive.events_s), default=None),
        "event_fusions": max(
            (
                int(((times[fused] >= begin) & (times[fused] < event + CALM_S)).sum())
                for begin, event in zip(begins, drive.events_s, strict=True)
            ),
            default=None,
        ),
    }


def _delay_s(event_s: float, times: np.ndarray, right: np.ndarray) -> float:
    after = times[(times > event_s + SUDDEN_S) & right]
    return round(float(after[0] - event_s), 3) if len(after) else float(times[-1] - event_s)


def is_right(mix: AdapterMix, families: frozenset[str]) -> bool:
    """Whether the heaviest part of a mix belongs to one of the families."""
    return bool(WorldBenchmark().families(mix.heaviest) & families)


def weight_of(mix: AdapterMix, families: frozenset[str]) -> float:
    """Weight of the parts of a mix that belong to one of the families."""
    return sum(weight for name, weight in mix.shares().items() if WorldBenchmark().families(name) & families)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Measures drives in whatever process it comes to."""

    spec: PipelineSpec
    images: int
    id: str

    def __call__(self, drive: GateDrive) -> dict[str, dict[str, Any]]:
        from semla_ros.lab.evaluation.subject import loaded_once

        subject = loaded_once(self.spec, self.id)
        subject.set_classes(CLASS_NAMES)
        return measure(subject, drive, images=self.images)


def measure_all(
    spec: PipelineSpec,
    drives: Sequence[GateDrive],
    *,
    images: int,
    workers: int,
    on_drive: Callable[[GateDrive], object] = lambda _: None,
) -> list[dict[str, dict[str, Any]]]:
    """`measure` for each drive, in so many processes; `on_drive` is called as they finish."""
    work = _Work(spec=spec, images=images, id=uuid.uuid4().hex)
    if workers <= 1 or len(drives) <= 1:
        rows = []
        for drive in drives:
            rows.append(work(drive))
            on_drive(drive)
        return rows
    found = {}
    longest_first = sorted(drives, key=lambda drive: -len(drive.times_s()))
    with closing(run_each(work, longest_first, jobs=workers)) as runs:
        for done in runs:
            if done.error is not None:
                raise done.error
            found[id(done.task)] = done.result
            on_drive(done.task)
    return [row for drive in drives if (row := found[id(drive)]) is not None]


def measure(subject: PipelineSubject, drive: GateDrive, *, images: int) -> dict[str, dict[str, Any]]:
    """Render a drive once and follow it in every way.

    Args:
        subject: Model, scene encoder and library.
        drive: What to drive.
        images: Frames that masks are compared on, spread evenly over what is measured; 0 = none.

    Returns:
        Way -> `scores`, and "miou", 0..1, None where no mask was compared.
    """
    times = drive.times_s()
    retriever = subject.retriever(subject.recommended)
    candidates = [index for index, time in enumerate(times) if time >= drive.scored_from_s and not drive.is_black(time)]
    chosen = {candidates[int(place)] for place in np.linspace(0, len(candidates) - 1, min(images, len(candidates)))}
    looks, kept = [], {}
    for index, time in enumerate(times):
        image, mask = drive.render(time)
        embedding = subject.embed(image)
        looks.append(Look(stamp_ns=round(time * 1e9), embedding=embedding, mix=retriever.retrieve(embedding)))
        if index in chosen:
            kept[index] = (image, mask)
    rows = {}
    for way in WAYS:
        followed = follow(way, looks, subject.drift, retriever.retrieve, drive)
        meter = MiouMeter(len(subject.class_names))
        in_use = ""
        for index in sorted(kept, key=lambda index: followed.mixes[index].id):
            image, mask = kept[index]
            if followed.mixes[index].id != in_use:
                subject.use(followed.mixes[index])
                in_use = followed.mixes[index].id
            meter.add(mask, subject.probabilities(image, mask.shape).argmax(axis=0).astype(np.uint8))
        rows[way] = {**scores(drive, followed), "miou": number(meter.mean)}
    return rows


def summary(drives: Mapping[str, Mapping[str, Mapping[str, Any]]], kinds: Mapping[str, str]) -> dict[str, Any]:
    """Per kind of drive and way: means over its drives, and the worst where a promise is about each.

    Args:
        drives: Name of the drive -> way -> scores.
        kinds: Name of the drive -> its kind.

    Returns:
        Kind -> way -> {"fusions_per_min", "recalls_per_min", "wrong_family", "right_weight", "miou": means;
        "most_fusions" (in one drive), "most_in_a_minute", "delay_s", "event_fusions": the most}, and all of them under
        "all".
    """
    groups = {kind: [name for name in drives if kinds[name] == kind] for kind in dict.fromkeys(kinds.values())}
    groups["all"] = list(drives)
    return {
        kind: {way: _joined([drives[name][way] for name in names]) for way in WAYS} for kind, names in groups.items()
    }


def _joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def given(key: str) -> list[float]:
        return [row[key] for row in rows if row[key] is not None]

    means = ("fusions_per_min", "recalls_per_min", "wrong_family", "right_weight", "miou")
    joined = {key: number(float(np.mean(given(key)))) if given(key) else None for key in means}
    most = {key: max(given(key), default=None) for key in ("most_in_a_minute", "delay_s", "event_fusions")}
    return {**joined, **most, "most_fusions": max(given("fusions"), default=None)}


def photograph_scores(looks: Sequence[Look], drift: DriftConfig, retrieve: Retrieve) -> dict[str, dict[str, Any]]:
    """What can be told of a drive that nothing is known about: way -> fusions, and weight of the base model."""
    minutes = (looks[-1].stamp_ns - looks[0].stamp_ns) / 6e10
    rows = {}
    for way in ("every look", "former gate", "gate"):
        followed = follow(way, looks, drift, retrieve)
        rows[way] = {
            "fusions": sum(followed.fused[1:]),
            "fusions_per_min": number(sum(followed.fused[1:]) / minutes, 3) if minutes else None,
            "recalls": sum(followed.recalled),
            "base_weight": number(float(np.mean([mix.shares()[BASE_MODEL] for mix in followed.mixes]))),
            "off_the_looks": number(
                float(np.mean([mix.difference(look.mix) for mix, look in zip(followed.mixes, looks, strict=True)]))
            ),
        }
    return rows
