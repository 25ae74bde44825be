"""What must hold on a GPU as on a CPU: each test runs on both, the latter showing that the test itself is right.

Graphs exist on the former only; there they are counted, too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tiny_parts import ADAPTERS, EMBEDDING_DIM, FakeEncoder, tiny_model, write_encoder

from bench.graphs import GraphCounts, counted_graphs, no_graphs
from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.config import InferenceConfig
from semla_ros.engines.base import AGREEMENT, agreement
from semla_ros.engines.probe_images import probe_images
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.pipeline_parts import PipelineParts
from semla_ros.results import AdapterMix, Frame
from semla_ros.segmentation.model import CatSeg
from semla_ros.segmentation.targets import lora_signature
from semla_ros.serving.memory import give_back_memory

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BOTH = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])]
SAME = 0.99  # share of pixels: the maps are near ties here and there, and a GPU sums in another order


@pytest.fixture(params=BOTH)
def device(request) -> str:
    return request.param


@pytest.fixture
def graphs() -> Iterator[GraphCounts]:
    with counted_graphs() as counts:
        yield counts


def model_of_clear_maps() -> CatSeg:
    model = tiny_model()
    with torch.no_grad():
        model.aggregator.head.weight.mul_(8)  # maps that differ by more than rounding
    return model


def text_of(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, EMBEDDING_DIM, generator=torch.Generator().manual_seed(count)), dim=-1)


def engine_on(device: str, classes: int = 4, **settings: str) -> TorchEngine:
    engine = TorchEngine(model_of_clear_maps(), InferenceConfig(device=device, threads=1, **settings))
    engine.set_text(text_of(classes))
    engine.warm_up()
    return engine


def image_of(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def is_same(given: TorchEngine, expected: TorchEngine, *images: np.ndarray) -> bool:
    masks = [[engine.segment(image).mask for image in images] for engine in (given, expected)]
    return agreement(*masks) >= SAME


def mix_of(*weights: float) -> AdapterMix:
    names = ADAPTERS[: len(weights)]
    return AdapterMix(
        names=names,
        weights=np.array(weights),
        distances=np.full(len(names), np.nan),
        base_weight=1 - sum(weights),
    )


def pipeline_on(device: str, library_folder: Path, **settings: str) -> PerceptionPipeline:
    model = model_of_clear_maps()
    engine = TorchEngine(model, InferenceConfig(device=device, threads=1, **settings))
    return PerceptionPipeline(
        PipelineParts(
            model=model,
            engine=engine,
            encoder=FakeEncoder(),
            library=AdapterLibrary.load(library_folder, targets=lora_signature(model)),
            tokens_of=lambda names: torch.arange(1, 1 + 3 * len(names)).reshape(-1, 3) % 39,
            class_names=("road", "building", "sky", "car"),
        )
    )


@pytest.mark.parametrize("mode", ["whole", "sliding"])
def test_masks_on_a_gpu_are_those_of_a_cpu_and_each_frame_is_replayed(device, graphs, mode) -> None:
    engine, expected = (engine_on(name, inference=mode, precision="fp32") for name in (device, "cpu"))
    images = [image_of(*size, seed=index) for index, size in enumerate([(96, 128), (60, 200), (480, 640)])]
    for _ in range(2):  # what has to be captured for each size of an image is in the first round
        graphs.replays, captured = 0, graphs.captures
        assert is_same(engine, expected, *images)
    assert graphs.captures == captured
    a_frame, rest = divmod(graphs.replays, len(images))
    assert rest == 0
    assert bool(a_frame) == (device == "cuda")
    assert engine.notes == []


def test_weights_that_change_in_place_on_a_gpu_act_without_capturing_anew(
    device, graphs, tiny_library_folder: Path
) -> None:
    pipeline, expected = (pipeline_on(name, tiny_library_folder, precision="fp32") for name in (device, "cpu"))
    frame, masks = Frame(image=image_of(), stamp_ns=0), []
    pipeline.segment(frame)
    captured = graphs.captures
    for weights in [(0.5, 0.5), (0.0, 0.0, 1.0), (0.2, 0.2, 0.2, 0.2), (0.5, 0.5)]:
        for one in (pipeline, expected):
            one.apply_mix(mix_of(*weights), "parameters")
        masks.append(pipeline.segment(frame).mask)
        assert agreement(masks[-1:], [expected.segment(frame).mask]) >= SAME
    assert graphs.captures == captured
    assert np.array_equal(masks[0], masks[3])
    assert not np.array_equal(masks[0], masks[1])
    pipeline.close()
    expected.close()


def test_vocabularies_of_one_bucket_on_a_gpu_share_a_graph_and_another_bucket_gets_its_own(device, graphs) -> None:
    engine = engine_on(device, 7, precision="fp32")
    captures = []
    for count in (7, 7, 5, 5, 11, 4):  # of 11 classes the best 8 are selected inside: a shape of its own
        before = graphs.captures
        engine.set_text(text_of(count))
        assert is_same(engine, engine_on("cpu", count, precision="fp32"), image_of())
        captures.append(graphs.captures - before)
    assert captures[1] == captures[3] == 0
    assert all(captures[index] for index in (2, 4, 5)) == (device == "cuda")
    assert engine.notes == []


def test_where_nothing_can_be_captured_on_a_gpu_eager_answers_with_a_note(device, graphs) -> None:
    with no_graphs():
        engine = engine_on(device, precision="fp32")
    assert is_same(engine, engine_on("cpu", precision="fp32"), image_of())
    assert graphs.replays == 0
    assert [note.startswith("eager serves") for note in engine.notes] == ([True] if device == "cuda" else [])


def test_images_of_two_cameras_on_a_gpu_get_their_own_masks(device) -> None:
    engine = engine_on(device, precision="fp32")
    images = [image_of(96, 128, seed=1), image_of(48, 200, seed=2)]
    for order in (images, images[::-1], images):
        together = [answer.mask for answer in engine.segment_batch(order)]
        alone = [engine.segment(image).mask for image in order]
        assert [mask.shape for mask in together] == [image.shape[:2] for image in order]
        assert agreement(together, alone) >= SAME
    assert engine.notes == []


def test_an_answer_of_a_gpu_is_not_overwritten_by_the_next_frame(device) -> None:
    engine = engine_on(device)
    first = engine.segment(image_of(seed=1))
    mask, confidence = first.mask.copy(), first.confidence.copy()
    for seed in (2, 3, 4):
        engine.segment(image_of(seed=seed))
    assert np.array_equal(first.mask, mask)
    assert np.array_equal(first.confidence, confidence)


@pytest.mark.parametrize("precision", ["auto", "fp16", "bf16"])
def test_half_precision_on_a_gpu_serves_only_where_it_gives_the_masks_of_fp32(device, precision) -> None:
    engine, plain = engine_on(device, precision=precision), engine_on(device, precision="fp32")
    images = probe_images(96, 128)  # those of its gate
    assert agreement(*([one.segment(image).mask for image in images] for one in (engine, plain))) >= AGREEMENT
    assert engine.precision == precision or precision == "auto" or engine.notes


def test_the_scene_embedding_of_a_gpu_is_that_of_a_cpu(device, tmp_path: Path) -> None:
    write_encoder(tmp_path / "scene_encoder.safetensors")
    images = [image_of(seed=seed) for seed in range(3)]
    given, expected = (SceneEncoder.load(tmp_path, device=name).embed_batch(images) for name in (device, "cpu"))
    assert np.abs(given - expected).max() <= 1e-2 * np.abs(expected).max()


def test_frames_go_on_while_a_gpu_fuses_and_captures_beside_them(device, tiny_library_folder: Path) -> None:
    pipeline = pipeline_on(device, tiny_library_folder, precision="fp32")
    frame, stop, failures = Frame(image=image_of(), stamp_ns=0), threading.Event(), []

    def fuse() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            try:
                pipeline.apply_mix(mix_of(*(rng.dirichlet(np.ones(4)) * 0.9)), "parameters")
            except Exception as error:
                failures.append(error)
                return

    fusing = threading.Thread(target=fuse, daemon=True)
    fusing.start()
    for count in (4, 5, 6, 7, 8, 4):
        pipeline.set_classes([f"class {index}" for index in range(count)])
        for _ in range(5):
            assert pipeline.segment(frame).mask.max() < count
    stop.set()
    fusing.join()
    assert failures == []
    assert pipeline.engine.notes == []
    quiet = pipeline_on("cpu", tiny_library_folder, precision="fp32")
    quiet.set_classes([f"class {index}" for index in range(4)])
    quiet.apply_mix(pipeline.generation.mix, "parameters")
    assert agreement([pipeline.segment(frame).mask], [quiet.segment(frame).mask]) >= SAME
    pipeline.close()
    quiet.close()


@pytest.mark.gpu
@needs_gpu
def test_many_fusions_leave_a_gpu_as_it_was(graphs, tiny_library_folder: Path) -> None:
    pipeline, frame = pipeline_on("cuda", tiny_library_folder), Frame(image=image_of(), stamp_ns=0)

    def fused(index: int) -> np.ndarray:
        pipeline.apply_mix(mix_of(*np.random.default_rng(index % 4).dirichlet(np.ones(4)) * 0.9), "parameters")
        return pipeline.segment(frame).mask

    first, *_ = [fused(index) for index in range(4)]
    captured, held = graphs.captures, torch.cuda.memory_allocated()
    for index in range(40):
        fused(index)
    assert torch.cuda.memory_allocated() == held
    assert graphs.captures == captured
    assert np.array_equal(fused(0), first)
    pipeline.close()


@pytest.mark.gpu
@needs_gpu
def test_a_closed_pipeline_gives_the_memory_of_a_gpu_back(tiny_library_folder: Path) -> None:
    def held_after_use() -> int:
        pipeline = pipeline_on("cuda", tiny_library_folder)
        pipeline.segment(Frame(image=image_of(480, 640), stamp_ns=0))
        in_use = torch.cuda.memory_allocated()
        pipeline.close()
        del pipeline
        give_back_memory()
        torch._C._cuda_clearCublasWorkspaces()  # one for each stream that ever computed, kept for the process' life
        assert torch.cuda.memory_allocated() < in_use
        return torch.cuda.memory_allocated()

    held = held_after_use()  # with what is allocated once for all
    assert [held_after_use() for _ in range(3)] == [held] * 3
