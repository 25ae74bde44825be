"""One model for several cameras or one for each: who speaks for the scene, and changes that reach all or none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from costless_node import CostlessPipeline

from semla_ros.config import SemlaConfig
from semla_ros.errors import VocabularyError
from semla_ros.results import Frame
from semla_ros.serving.model_bank import ModelBank
from semla_ros.serving.parameters import Settings

SECOND_NS = 1_000_000_000


class ListeningPipeline(CostlessPipeline):
    """Remembers the cameras whose frames it was shown; raises what it is told to where its classes are changed."""

    made: list[ListeningPipeline]
    error: Exception | None = None

    def __init__(self, config: SemlaConfig) -> None:
        super().__init__(config)
        self.shown: list[str] = []
        self.made.append(self)

    def offer(self, frame: Frame) -> None:
        self.shown.append(frame.camera)

    def set_classes(self, names):
        if self.error is not None:
            raise self.error
        return super().set_classes(names)


@pytest.fixture
def load():
    class Pipeline(ListeningPipeline):
        made: list[ListeningPipeline] = []  # noqa: RUF012

    return Pipeline


def bank_of(load, cameras: list[str], **parameters: object) -> tuple[ModelBank, Settings]:
    settings = Settings.make({"cameras": cameras, **parameters})
    bank = ModelBank(load)
    bank.open(settings, cameras)
    return bank, settings.with_recommended(bank.any.retrieval, bank.any.drift, bank.any.class_names)


def show(bank: ModelBank, camera: str, second: float) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    bank.segment([Frame(image=image, stamp_ns=int(second * SECOND_NS), camera=camera, frame_id=camera)], False)


def test_with_one_scene_the_first_camera_that_delivers_speaks_for_it(load) -> None:
    bank, _ = bank_of(load, ["front", "left"])
    (pipeline,) = load.made
    for step in range(10):
        show(bank, "front", 10 + 0.1 * step)
        show(bank, "left", 10 + 0.1 * step)
    assert set(pipeline.shown) == {"front"}
    assert pipeline._tally.frames == 20  # both are segmented
    pipeline.shown.clear()
    show(bank, "left", 12.0)  # the front camera may only be late
    assert pipeline.shown == []
    show(bank, "left", 14.0)  # it is silent
    show(bank, "front", 14.1)
    show(bank, "left", 14.2)
    assert pipeline.shown == ["left", "front"]


def test_cameras_that_share_a_model_can_be_answered_at_once(load) -> None:
    bank, _ = bank_of(load, ["front", "left", "right"])
    (pipeline,) = load.made
    images = [np.full((4, 4, 3), value, np.uint8) for value in (0, 1)]
    frames = [Frame(image=image, stamp_ns=SECOND_NS, camera=camera, frame_id=camera)
              for image, camera in zip(images, ("front", "left"), strict=True)]  # fmt: skip
    results = bank.segment(frames, True)
    assert [result.camera for result in results] == ["front", "left"]
    assert [int(result.mask.max()) for result in results] == [0, 1]
    assert pipeline.batches == [2]
    assert pipeline.shown == ["front"]


@pytest.mark.parametrize(
    ("scope", "device", "wanted", "most"),
    [
        ("vehicle", "cpu", 0, 1),  # a batch takes a CPU as long as its images in turn
        ("vehicle", "cuda", 0, 3),
        ("vehicle", "cuda", 2, 2),
        ("vehicle", "cpu", 9, 3),
        ("camera", "cuda", 0, 1),  # each has weights of its own
    ],
)
def test_how_many_cameras_are_answered_at_once(load, scope: str, device: str, wanted: int, most: int) -> None:
    bank, _ = bank_of(load, ["front", "left", "right"], adaptation_scope=scope)
    for pipeline in load.made:
        weight = SimpleNamespace(device=f"{device}:1" if device == "cuda" else device)
        pipeline.model = SimpleNamespace(parameters=lambda weight=weight: iter([weight]))
    assert bank.most_at_once(wanted) == most


def test_with_a_scene_for_each_camera_each_model_sees_its_own(load) -> None:
    bank, _ = bank_of(load, ["front", "left"], adaptation_scope="camera")
    show(bank, "front", 1.0)
    show(bank, "left", 1.0)
    assert [pipeline.shown for pipeline in load.made] == [["front"], ["left"]]


@pytest.mark.parametrize(
    "error", [VocabularyError("refused"), RuntimeError("out of memory")], ids=["told", "unexpected"]
)
def test_a_change_that_one_model_refuses_is_taken_back_in_the_others(load, error: Exception) -> None:
    bank, settings = bank_of(load, ["front", "left"], adaptation_scope="camera")
    front, left = load.made
    before = front.class_names
    left.error = error
    with pytest.raises(type(error), match=str(error)):
        bank.apply(settings, settings.changed({"classes": ["a", "b"], "top_k": 2}))
    assert front.class_names == left.class_names == before
    assert front.retrieval.top_k == left.retrieval.top_k == 3
    left.error = None
    bank.apply(settings, settings.changed({"classes": ["a", "b"], "top_k": 2}))
    assert front.class_names == left.class_names == ("a", "b")
    assert front.retrieval.top_k == left.retrieval.top_k == 2


def test_the_reason_is_told_also_where_a_change_cannot_be_taken_back(load, caplog: pytest.LogCaptureFixture) -> None:
    bank, settings = bank_of(load, ["front", "left"], adaptation_scope="camera")
    front, left = load.made
    left.error = VocabularyError("refused")
    front.on_generation.append(lambda generation: setattr(front, "error", RuntimeError("out of memory")))
    with pytest.raises(VocabularyError, match="refused"):
        bank.apply(settings, settings.changed({"classes": ["a", "b"]}))
    assert front.class_names == ("a", "b")
    assert "could not be taken back" in caplog.text


def test_a_failure_ages_from_when_it_was_first_seen(load, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, _ = bank_of(load, [""])
    now_s = 100.0
    monkeypatch.setattr("semla_ros.serving.model_bank.time.monotonic", lambda: now_s)
    assert bank.failure_age_s("", 0) is None
    assert bank.failure_age_s("", 2) == 0.0
    now_s = 103.0
    assert bank.failure_age_s("", 2) == 3.0
    assert bank.failure_age_s("", 3) == 0.0


def test_what_is_given_in_part_is_completed_by_what_the_library_recommends(load) -> None:
    bank, _ = bank_of(load, [""], temperature=0.7)
    assert (bank.any.retrieval.top_k, bank.any.retrieval.temperature) == (3, 0.7)


def test_a_model_that_cannot_be_loaded_closes_those_that_were(load) -> None:
    closed = []

    def load_once(config: SemlaConfig):
        if load.made:
            raise VocabularyError("no second one")
        pipeline = load(config)
        pipeline.close = lambda: closed.append(pipeline)
        return pipeline

    with pytest.raises(VocabularyError, match="no second one"):
        bank_of(load_once, ["front", "left"], adaptation_scope="camera")
    assert closed == load.made


def test_numbers_of_generations_and_vocabularies_never_come_back_when_a_model_is_loaded_again(load) -> None:
    bank, settings = bank_of(load, ["front", "left"], adaptation_scope="camera")
    seen = {scope: [pipeline.generation] for scope, pipeline in bank.pipelines.items()}
    for _ in range(3):
        bank.of("left").set_classes(["a", "b"])  # one of them is ahead
        seen["left"].append(bank.of("left").generation)
        bank.close()
        bank.open(settings, ["front", "left"])
        for scope, pipeline in bank.pipelines.items():
            seen[scope].append(pipeline.generation)
    for generations in seen.values():
        assert [item.number for item in generations] == list(range(len(generations)))
        assert [item.vocabulary_version for item in generations] == list(range(len(generations)))
