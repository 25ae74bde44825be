import io

import numpy as np
import pytest
from replay_toys import toy_image, toy_truth
from rich.console import Console

from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.demo.live_line import LiveLine
from semla_ros.lab.replay.runners import Answer, Outcome
from semla_ros.lab.replay.scores import VariantScore
from semla_ros.results import AdapterMix, Frame, Generation, Segmentation

CLASSES = ("road", "sky", "car")
MIX = AdapterMix(names=("fog",), weights=np.array([0.7]), distances=np.array([0.3]), base_weight=0.3)


def outcome(item: ReplayFrame, mask: np.ndarray, number: int, mix: AdapterMix) -> Outcome:
    generation = Generation(number=number, mix=mix, class_names=CLASSES, vocabulary_version=1, reason="drift")
    made = Segmentation(
        mask=mask,
        confidence=None,
        generation=generation,
        stamp_ns=0,
        camera="",
        frame_id="",
        latency_ms={"total": 83.4},
    )
    return Outcome.own(Answer(item, made, None, (), 0))


@pytest.fixture
def shown():
    """What is written of three frames, on a terminal or into a file."""

    def show(*, is_terminal: bool) -> str:
        file = io.StringIO()
        console = Console(file=file, width=140, force_terminal=is_terminal)
        scores = {"base": VariantScore(CLASSES), "semla": VariantScore(CLASSES)}
        with LiveLine(console, 90.0) as line:
            for index in range(3):
                truth = toy_truth(index)
                frame = Frame(image=toy_image(index, "fog"), stamp_ns=index)
                item = ReplayFrame(index, frame, index, truth, "fog", "/image")
                outcomes = {
                    "base": outcome(item, np.zeros_like(truth), 0, AdapterMix()),
                    "semla": outcome(item, truth, 4, MIX),
                }
                line.watch(item, 7.5, outcomes, {name: scores[name].add(item, outcomes[name]) for name in scores})
        return file.getvalue()

    return show


EXPECTED = ("8 / 90 s", "fog", "83 ms", "generation 4 (drift)", "fog 70% base model 30%", "→ 1.00")


def test_a_terminal_shows_what_is_known_of_each_frame_in_one_line(shown) -> None:
    words = shown(is_terminal=True)
    for expected in EXPECTED:
        assert expected in words, expected


def test_elsewhere_a_line_comes_now_and_then(shown) -> None:
    lines = shown(is_terminal=False).strip().splitlines()
    assert len([line for line in lines if "generation" in line]) == 1
    for expected in EXPECTED:
        assert expected in lines[-1], expected
