from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_parts import ADAPTERS, CLASSES, PipelineFactory

from semla_ros.config import DriftConfig, RetrievalConfig, SemlaConfig
from semla_ros.errors import ConfigError, LibraryError, VocabularyError
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.pipeline_status import GenerationLog
from semla_ros.results import AdapterMix, Frame, Generation

SECOND = 1_000_000_000


def scene(adapter: str | int, *, stamp_s: float, size: tuple[int, int] = (48, 64), nuance: int = 0) -> Frame:
    """A frame whose embedding, by the fake encoder, is the centroid of an adapter."""
    index = ADAPTERS.index(adapter) if isinstance(adapter, str) else adapter
    image = np.random.default_rng(index + 10 * nuance).integers(0, 255, (*size, 3), dtype=np.uint8)
    image[0, 0] = index
    return Frame(image=image, stamp_ns=int(stamp_s * SECOND), camera="front", frame_id="camera_front")


def single(name: str) -> AdapterMix:
    return AdapterMix(names=(name,), weights=np.ones(1), distances=np.zeros(1), base_weight=0.0)


@pytest.fixture
def pipeline(make_pipeline: PipelineFactory) -> PerceptionPipeline:
    return make_pipeline()


def test_generation_zero_is_the_base_model(pipeline: PerceptionPipeline) -> None:
    result = pipeline.segment(scene("day", stamp_s=1))
    assert result.generation.number == 0
    assert result.generation.reason == "base"
    assert result.generation.mix.base_weight == 1.0
    assert pipeline.class_names == CLASSES


def test_a_mask_has_the_size_of_the_frame_and_carries_its_stamp_and_names(pipeline: PerceptionPipeline) -> None:
    frame = scene("day", stamp_s=1.25, size=(50, 70))
    result = pipeline.segment(frame)
    assert result.mask.shape == (50, 70)
    assert result.mask.dtype == np.uint8
    assert result.mask.max() < len(CLASSES)
    assert result.confidence is not None
    assert result.confidence.shape == (50, 70)
    assert (result.stamp_ns, result.camera, result.frame_id) == (frame.stamp_ns, "front", "camera_front")
    assert result.latency_ms["total"] > 0
    assert pipeline.segment(frame, want_confidence=False).confidence is None


def test_frames_of_several_cameras_can_be_answered_at_once(pipeline: PerceptionPipeline) -> None:
    frames = [scene("day", stamp_s=1.0), scene("fog", stamp_s=1.5, size=(30, 40))]
    pipeline.adapt(frames[0])
    before = pipeline.status().frames
    results = pipeline.segment_batch(frames)
    assert pipeline.status().frames == before + 2
    for frame, result in zip(frames, results, strict=True):
        assert (result.stamp_ns, result.generation.number) == (frame.stamp_ns, 1)
        assert (result.mask == pipeline.segment(frame).mask).mean() > 0.99


def test_a_new_scene_gets_the_nearest_adapter_and_another_mask(pipeline: PerceptionPipeline) -> None:
    frame = scene("fog", stamp_s=1)
    base = pipeline.segment(frame)
    step = pipeline.adapt(frame)
    assert step.action == "fused"
    assert step.mix is not None
    assert step.mix.names[0] == "fog"
    assert step.generation.number == 1
    assert step.generation.scene_stamp_ns == frame.stamp_ns
    assert set(step.latency_ms) == {"embed", "retrieve", "prepare", "commit"}
    adapted = pipeline.segment(frame)
    assert adapted.generation is step.generation
    assert adapted.confidence is not None
    assert base.confidence is not None
    assert not np.array_equal(adapted.confidence, base.confidence)


def test_a_steady_scene_keeps_its_generation(pipeline: PerceptionPipeline) -> None:
    actions = [pipeline.adapt(scene("fog", stamp_s=1 + second)).action for second in range(5)]
    assert actions[0] == "fused"
    assert actions[-1] == "steady"
    assert pipeline.generation.mix.names[0] == "fog"


def test_a_scene_that_comes_back_is_recalled_at_its_first_look_without_a_fusion(make_pipeline: PipelineFactory) -> None:
    pipeline = make_pipeline()
    frames = [scene(name, stamp_s=1 + look / 2) for look, name in enumerate(["day"] * 8 + ["fog"] * 8)]
    first = [pipeline.process(frame) for frame in frames][7][0]
    there = pipeline.generation
    result, step = pipeline.process(scene("day", stamp_s=9))
    assert (step.action, step.generation.reason) == ("recalled", "recall")
    assert set(step.latency_ms) == {"embed", "retrieve", "commit"}
    assert step.mix is step.generation.mix
    assert step.generation.number == there.number + 1
    assert step.generation.mix.id == first.generation.mix.id
    assert np.array_equal(result.mask, pipeline.segment(frames[7]).mask)
    assert np.array_equal(result.mask, first.mask)
    assert pipeline.adapt(scene("fog", stamp_s=9.5)).generation.mix.id == there.mix.id
    status = pipeline.status()
    assert (status.recalls, status.fusions) == (2, pipeline.generation.number - 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipeline: pipeline.set_classes(["road", "sky"]),
        lambda pipeline: pipeline.reload_library(),
        lambda pipeline: pipeline.update(retrieval=RetrievalConfig(top_k=2)),
        lambda pipeline: pipeline.apply_mix(AdapterMix(), "manual"),
    ],
    ids=["classes", "library", "retrieval", "mix"],
)
def test_nothing_is_recalled_that_was_made_before_a_change(
    change: Callable[[PerceptionPipeline], object], make_pipeline: PipelineFactory
) -> None:
    pipeline = make_pipeline()
    for look, name in enumerate(["day"] * 8 + ["fog"] * 8):
        pipeline.adapt(scene(name, stamp_s=1 + look / 2))
    change(pipeline)
    assert pipeline.adapt(scene("day", stamp_s=9)).action != "recalled"


def test_turns_are_throttled_by_the_stamps_of_the_frames(make_pipeline: PipelineFactory) -> None:
    pipeline = make_pipeline(drift=DriftConfig(retrieval_rate_hz=2.0))
    actions = [pipeline.adapt(scene("fog", stamp_s=1 + 0.1 * index)).action for index in range(5)]
    assert actions[1:] == ["throttled"] * 4
    assert pipeline.adapt(scene("fog", stamp_s=1.6)).action != "throttled"
    assert pipeline.status().embeddings == 2


def test_the_same_frames_give_the_same_masks_and_generations(make_pipeline: PipelineFactory) -> None:
    frames = [
        scene(name, stamp_s=1 + look / 2)
        for look, name in enumerate(("day", "day", "fog", "fog", "night", "night", "day", "snow", "snow"))
    ]
    runs = []
    for _ in range(2):
        pipeline = make_pipeline()
        results = [pipeline.process(frame) for frame in frames]
        runs.append(results)
    for (first, first_step), (second, second_step) in zip(*runs, strict=True):
        assert np.array_equal(first.mask, second.mask)
        assert np.array_equal(first.confidence, second.confidence)  # type: ignore[arg-type]
        assert first_step.action == second_step.action
        assert first.generation.mix.as_dict() == second.generation.mix.as_dict()
    assert runs[0][-1][0].generation.number >= 3


def test_a_mask_always_carries_the_generation_whose_weights_made_it(make_pipeline: PipelineFactory) -> None:
    """Swaps run against a loop of frames; each answer must be the one that its generation gives alone."""
    pipeline = make_pipeline()
    frame = scene("day", stamp_s=1)
    expected: dict[str, np.ndarray] = {}
    for name in ADAPTERS:
        pipeline.apply_mix(single(name), "parameters")
        expected[name] = pipeline.segment(frame).confidence  # type: ignore[assignment]
    stop = threading.Event()

    def swap() -> None:
        turn = 0
        while not stop.is_set():
            pipeline.apply_mix(single(ADAPTERS[turn % 4]), "parameters")
            turn += 1

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(60):
            result = pipeline.segment(frame)
            name = result.generation.mix.names[0]
            seen.add(result.generation.number)
            assert np.array_equal(result.confidence, expected[name])  # type: ignore[arg-type]
    finally:
        stop.set()
        thread.join()
    assert len(seen) > 3
    assert len({item.tobytes() for item in expected.values()}) == 4


@pytest.mark.parametrize("memory", ["double", "single"])
def test_both_memory_policies_give_the_same_masks(make_pipeline: PipelineFactory, memory: str) -> None:
    results = []
    for policy in ("double", memory):
        pipeline = make_pipeline(memory=policy)
        results.append(pipeline.process(scene("fog", stamp_s=1))[0])
    assert np.array_equal(results[0].confidence, results[1].confidence)  # type: ignore[arg-type]


def test_changing_the_classes_is_one_generation_with_the_mix_kept(pipeline: PerceptionPipeline) -> None:
    pipeline.adapt(scene("fog", stamp_s=1))
    before = pipeline.generation
    after = pipeline.set_classes(["sky", "car"])
    assert after.number == before.number + 1
    assert after.class_names == ("sky", "car")
    assert after.vocabulary_version == before.vocabulary_version + 1
    assert after.mix is before.mix
    assert after.reason == "vocabulary"
    result = pipeline.segment(scene("fog", stamp_s=2))
    assert result.mask.max() <= 1
    assert result.generation is after
    pipeline.count_on(dataclasses.replace(after, number=40, vocabulary_version=7))  # of a pipeline before
    assert (pipeline.generation.number, pipeline.generation.vocabulary_version) == (41, 8)
    later = pipeline.set_classes(["sky", "road"])
    assert (later.number, later.vocabulary_version, later.mix) == (42, 9, after.mix)


@pytest.mark.parametrize("names", [[], ["sky", "sky"], [""]])
def test_a_bad_class_list_is_refused_and_the_present_one_stays(pipeline: PerceptionPipeline, names: list[str]) -> None:
    with pytest.raises(VocabularyError):
        pipeline.set_classes(names)
    assert pipeline.class_names == CLASSES
    assert pipeline.generation.number == 0
    assert pipeline.status().failures == 1
    pipeline.adapt(scene("fog", stamp_s=1))
    assert pipeline.segment(scene("fog", stamp_s=1)).mask.max() < len(CLASSES)


def test_an_engine_that_refuses_new_classes_leaves_everything_as_it_was(
    pipeline: PerceptionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = scene("fog", stamp_s=1)
    pipeline.adapt(frame)
    before = pipeline.segment(frame)
    engine = pipeline.engine
    set_text = engine.set_text

    def refuse(text_features: torch.Tensor) -> None:
        if len(text_features) == 2:
            raise RuntimeError("out of memory")
        set_text(text_features)

    monkeypatch.setattr(engine, "set_text", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        pipeline.set_classes(["sky", "car"])
    after = pipeline.segment(frame)
    assert after.generation is before.generation
    assert np.array_equal(after.confidence, before.confidence)  # type: ignore[arg-type]
    assert pipeline.apply_mix(single("day"), "parameters").class_names == CLASSES


def test_frozen_adaptation_ignores_the_scene(pipeline: PerceptionPipeline) -> None:
    pipeline.freeze(True)
    assert pipeline.adapt(scene("fog", stamp_s=1)).action == "frozen"
    assert pipeline.generation.number == 0
    assert pipeline.status().is_frozen
    pipeline.freeze(False)
    assert pipeline.adapt(scene("fog", stamp_s=2)).action == "fused"


def test_reset_returns_to_the_base_model_with_a_new_number(pipeline: PerceptionPipeline) -> None:
    frame = scene("fog", stamp_s=1)
    base = pipeline.segment(frame)
    pipeline.adapt(frame)
    after = pipeline.reset_adaptation()
    assert after.number == 2
    assert after.mix.base_weight == 1.0
    assert after.reason == "reset"
    assert after.scene_stamp_ns is None
    assert pipeline.scene_distances() == {}
    assert np.array_equal(pipeline.segment(frame).confidence, base.confidence)  # type: ignore[arg-type]


def test_stamps_that_jump_back_start_the_gate_over(pipeline: PerceptionPipeline) -> None:
    pipeline.process(scene("fog", stamp_s=100))
    assert pipeline.adapt(scene("night", stamp_s=1)).action == "fused"
    assert pipeline.generation.mix.names[0] == "night"


def test_new_retrieval_settings_act_on_the_present_scene_at_once(pipeline: PerceptionPipeline) -> None:
    frame = scene("fog", stamp_s=1)
    pipeline.adapt(frame)
    assert len(pipeline.generation.mix.names) > 1
    after = pipeline.update(retrieval=RetrievalConfig(top_k=1))
    assert after.mix.names == ("fog",)
    assert after.reason == "parameters"
    assert after.scene_stamp_ns == frame.stamp_ns


def test_new_drift_settings_count_from_the_next_frame(pipeline: PerceptionPipeline) -> None:
    pipeline.update(drift=DriftConfig(retrieval_rate_hz=0.1))
    pipeline.adapt(scene("fog", stamp_s=1))
    assert pipeline.adapt(scene("fog", stamp_s=5)).action == "throttled"


def test_a_mix_can_be_applied_by_hand_and_drift_replaces_it(pipeline: PerceptionPipeline) -> None:
    pipeline.adapt(scene("night", stamp_s=1))
    by_hand = pipeline.apply_mix(single("snow"), "parameters")
    assert by_hand.mix.names == ("snow",)
    assert by_hand.scene_stamp_ns is None
    for stamp_s in (2, 2.5):
        pipeline.adapt(scene("fog", stamp_s=stamp_s))
    assert pipeline.generation.mix.names[0] == "fog"


def test_an_adapter_that_breaks_while_running_is_left_out_of_the_same_turn(
    make_pipeline: PipelineFactory, library_copy: Path
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, retrieval=RetrievalConfig(top_k=1))
    pipeline.process(scene("day", stamp_s=1))
    (library_copy / "fog" / "adapter_model.safetensors").write_bytes(b"broken")
    pipeline.process(scene("fog", stamp_s=9.5))
    result, step = pipeline.process(scene("fog", stamp_s=10))
    assert step.action == "fused"
    assert "fog" not in result.generation.mix.names
    status = pipeline.status()
    assert status.failures == 1
    assert "fog" in status.last_error
    assert "fog" in status.library_problems
    pipeline.process(scene("night", stamp_s=19.5))
    assert pipeline.process(scene("night", stamp_s=20))[1].action == "fused"


def test_an_unexpected_error_in_the_adaptation_path_is_reported_not_raised(
    pipeline: PerceptionPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(image: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(pipeline.encoder, "embed", fail)
    step = pipeline.adapt(scene("fog", stamp_s=1))
    assert step.action == "failed"
    assert step.error == "ZeroDivisionError: on purpose"
    assert "Traceback" in caplog.text
    assert pipeline.segment(scene("fog", stamp_s=1)).generation.number == 0


def test_a_reloaded_library_offers_what_was_added_and_survives_what_was_removed(
    make_pipeline: PipelineFactory, library_copy: Path
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, retrieval=RetrievalConfig(top_k=1))
    pipeline.process(scene("fog", stamp_s=1))
    for item in (library_copy / "fog").iterdir():
        item.unlink()
    (library_copy / "fog").rmdir()
    after = pipeline.reload_library()
    assert after.reason == "library"
    assert "fog" not in after.mix.names
    assert "fog" not in pipeline.library.names
    pipeline.segment(scene("fog", stamp_s=2))


def test_new_settings_are_not_refused_for_an_adapter_that_has_gone(
    make_pipeline: PipelineFactory, library_copy: Path
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, retrieval=RetrievalConfig(top_k=1))
    pipeline.process(scene("fog", stamp_s=1))
    (library_copy / "night" / "adapter_model.safetensors").unlink()
    after = pipeline.update(retrieval=RetrievalConfig(top_k=4, temperature=10.0, fade_out_of_library=False))
    assert after.reason == "parameters"
    assert set(after.mix.names) == {"day", "fog", "snow"}
    assert "night" in pipeline.status().library_problems
    assert pipeline.retrieval.top_k == 4


def test_a_library_that_is_gone_leaves_the_one_in_memory(make_pipeline: PipelineFactory, library_copy: Path) -> None:
    pipeline = make_pipeline(library_folder=library_copy)
    pipeline.process(scene("fog", stamp_s=1))
    before = pipeline.generation
    library_copy.rename(library_copy.with_name("elsewhere"))
    with pytest.raises(LibraryError):
        pipeline.reload_library()
    assert pipeline.generation is before
    assert pipeline.library.names
    assert "library" in pipeline.status().last_error


def test_the_background_thread_follows_the_scene_while_frames_go_on(pipeline: PerceptionPipeline) -> None:
    made: list[Generation] = []
    pipeline.on_generation.append(made.append)
    pipeline.start()
    assert pipeline.status().is_running
    stamp, deadline = 1.0, time.monotonic() + 20
    for name in ("fog", "night"):
        while pipeline.generation.mix.names[:1] != (name,):
            assert time.monotonic() < deadline
            frame = scene(name, stamp_s=stamp)
            pipeline.offer(frame)
            assert pipeline.segment(frame).mask.shape == (48, 64)
            stamp += 0.2
    pipeline.stop()
    assert not pipeline.status().is_running
    assert [item.number for item in made] == list(range(1, len(made) + 1))
    number = pipeline.generation.number
    pipeline.offer(scene("snow", stamp_s=stamp + 100))
    time.sleep(0.05)
    assert pipeline.generation.number == number


def test_an_engine_that_judges_what_was_built_does_not_hold_up_a_swap(
    pipeline: PerceptionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapped: list[str] = []

    def judge() -> None:
        with ThreadPoolExecutor(1) as threads:
            swapped.append(threads.submit(pipeline.adapt, scene("fog", stamp_s=1)).result(timeout=20).action)

    monkeypatch.setattr(pipeline._parts.engine, "catch_up", judge)
    segmentation = pipeline.segment(scene("fog", stamp_s=1))
    assert swapped == ["fused"]
    assert segmentation.generation.mix.names[0] == "fog"


def test_a_callback_that_fails_does_not_stop_adaptation(pipeline: PerceptionPipeline) -> None:
    def fail(_: Generation) -> None:
        raise ValueError("on purpose")

    made: list[Generation] = []
    pipeline.on_generation += [fail, made.append]
    assert pipeline.adapt(scene("fog", stamp_s=1)).action == "fused"
    assert len(made) == 1


def test_status_counts_what_happened(pipeline: PerceptionPipeline) -> None:
    for index, name in enumerate(("fog", "fog", "night")):
        pipeline.process(scene(name, stamp_s=1 + 3 * index))
    status = pipeline.status()
    assert status.frames == 3
    assert status.embeddings == 3
    assert status.fusions == pipeline.generation.number
    assert status.retrievals == status.fusions
    assert status.failures == 0
    assert status.last_error == ""
    assert status.frame_latency_ms["total"].count == 3
    assert 0 < status.frame_latency_ms["total"].p50 <= status.frame_latency_ms["total"].max
    assert status.adaptation_latency_ms["embed"].count == 3
    assert status.library_size == len(ADAPTERS)
    assert set(status.resident_adapters) == set(pipeline.generation.mix.names)


def test_a_pipeline_is_loaded_from_folders_with_the_settings_that_the_library_recommends(
    tiny_model_folder: Path, library_copy: Path
) -> None:
    (library_copy / "library.yaml").write_text("retrieval: {top_k: 2}\nadapters: {}\n")
    config = SemlaConfig(model=str(tiny_model_folder), library=str(library_copy), drift=DriftConfig(steady_s=3.0))
    pipeline = PerceptionPipeline.load(config)
    assert pipeline.class_names == CLASSES
    assert pipeline.retrieval.top_k == 2
    assert pipeline.drift.steady_s == 3.0
    result, step = pipeline.process(scene("fog", stamp_s=1))
    assert step.action == "fused"
    assert len(result.generation.mix.names) <= 2
    pipeline.close()


def test_a_missing_library_is_named(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = SemlaConfig(model=str(tiny_model_folder), library=str(tmp_path / "nothing"))
    with pytest.raises(LibraryError, match="nothing"):
        PerceptionPipeline.load(config)


def test_a_class_list_from_the_settings_is_used_from_the_start(tiny_model_folder: Path, library_copy: Path) -> None:
    config = SemlaConfig(model=str(tiny_model_folder), library=str(library_copy), classes=("sky", "person"))
    pipeline = PerceptionPipeline.load(config)
    assert pipeline.generation.class_names == ("sky", "person")
    pipeline.close()
    with pytest.raises(VocabularyError, match="unicorn"):
        PerceptionPipeline.load(SemlaConfig(model=config.model, library=config.library, classes=("unicorn",)))


def started(model: Path, library: Path, **settings: object) -> PerceptionPipeline:
    return PerceptionPipeline.load(SemlaConfig(model=str(model), library=str(library), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_frozen", [True, False])
def test_it_starts_with_the_mix_that_is_asked_for_and_keeps_it_where_frozen(
    tiny_model_folder: Path, library_copy: Path, is_frozen: bool
) -> None:
    pipeline = started(tiny_model_folder, library_copy, initial_mix="fog 70%, night 20%", start_frozen=is_frozen)
    generation = pipeline.generation
    assert generation.mix.shares() == pytest.approx({"fog": 0.7, "night": 0.2, "base model": 0.1})
    assert generation.reason == "parameters"
    action = pipeline.adapt(scene("day", stamp_s=1)).action
    assert action == ("frozen" if is_frozen else "fused")
    assert (pipeline.generation is generation) == is_frozen
    pipeline.freeze(False)
    pipeline.adapt(scene("day", stamp_s=2))
    assert pipeline.generation is not generation
    pipeline.close()


def test_a_start_with_an_adapter_that_is_not_there_is_refused_by_name(
    tiny_model_folder: Path, library_copy: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'initial_mix'.* no adapter 'nihgt'; did you mean 'night'\?"):
        started(tiny_model_folder, library_copy, initial_mix="nihgt")


def test_a_start_with_an_adapter_that_is_damaged_serves_the_base_model_and_says_so(
    tiny_model_folder: Path, library_copy: Path
) -> None:
    (library_copy / "night" / "adapter_model.safetensors").write_bytes(b"cut")
    pipeline = started(tiny_model_folder, library_copy, initial_mix="night", start_frozen=True)
    assert not pipeline.generation.mix.names
    assert "night" in pipeline.status().library_problems
    assert pipeline.segment(scene("day", stamp_s=1)).mask.shape == (48, 64)
    pipeline.close()


def test_generations_are_told_in_words_at_most_every_other_second(caplog: pytest.LogCaptureFixture) -> None:
    def generation(number: int, mix: str) -> Generation:
        return Generation(
            number=number, mix=AdapterMix.parse(mix), class_names=CLASSES, vocabulary_version=0, reason="drift"
        )

    log = GenerationLog()
    with caplog.at_level("INFO"):
        for second, number, mix in (
            (0.0, 1, "fog 70%"),
            (0.5, 2, "day"),
            (1.0, 3, "night"),
            (2.5, 4, "fog 70%"),
            (9.0, 5, "day"),
        ):
            log.tell(generation(number, mix), 100.0 + second)
    assert caplog.messages == [
        "generation 1 (drift): fog 70.0%, base model 30.0%, instead of base model 100.0%",
        "generation 4 (drift): fog 70.0%, base model 30.0%; 2 others since the last one told",
        "generation 5 (drift): day 100.0%, instead of fog 70.0%, base model 30.0%",
    ]
