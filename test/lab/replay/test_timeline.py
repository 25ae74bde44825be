"""The timeline of a replay: its bins join as a recording grows, and nothing is lost in them."""

import numpy as np
import pytest
from replay_toys import CLASSES, ToyPipeline, domain_at, toy_image, toy_truth

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.replay import timeline
from semla_ros.lab.replay.comparison import parse_variants
from semla_ros.lab.replay.runners import VariantRunner
from semla_ros.lab.replay.scores import VariantScore
from semla_ros.lab.replay.timeline import Timeline
from semla_ros.results import Frame


def frame(index: int, frames: int) -> ReplayFrame:
    domain = domain_at(index, frames)
    stamp_ns = index * 125_000_000
    image = Frame(image=toy_image(index, domain), stamp_ns=stamp_ns)
    return ReplayFrame(index, image, stamp_ns, toy_truth(index), domain, "/image")


def test_joined_bins_hold_the_means_of_their_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "_BINS", 8)
    monkeypatch.setattr(timeline, "_FIRST_BIN_S", 0.125)
    runner = VariantRunner(parse_variants("semla")[0], ToyPipeline)
    score, over_time = VariantScore(CLASSES), Timeline(len(CLASSES))
    confidences, flickers, domains = [], [], []
    for index in range(50):  # each fills a bin of its own, of which there are 8: they join three times
        item = frame(index, 50)
        outcome = runner.run(item)
        scored = score.add(item, outcome)
        over_time.add(item, {"semla": outcome}, {"semla": scored})
        confidences.append(scored.confidence)
        flickers.append(scored.flicker)
        domains.append(item.segment)
    series = over_time.series(["semla"])
    measured = series["variants"]["semla"]
    bins = [slice(first, first + 8) for first in range(0, 50, 8)]
    assert series["bin_s"] == 1.0
    assert series["t"] == [pytest.approx(0.5 + number) for number in range(len(bins))]
    assert measured["confidence"] == pytest.approx([np.mean(confidences[part]) for part in bins], abs=1e-6)
    assert measured["flicker"] == pytest.approx([np.nanmean(flickers[part]) for part in bins], abs=1e-6)
    assert series["segment"] == [max(set(domains[part]), key=domains[part].count) for part in bins]
    assert [sum(shares) for shares in zip(*measured["weights"].values(), strict=True)] == pytest.approx(
        [1.0] * len(bins), abs=1e-3
    )
    assert set(measured["latency_max"]) == {20.0}
    assert None not in measured["miou"]
    assert measured["out"][-1] == 1.0, "no adapter covers the last stretch"
