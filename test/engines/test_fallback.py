"""Whatever fails in a forward pass, whenever it does: that very image is answered, what failed is not used again."""

from __future__ import annotations

import copy
import itertools
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from small_model import small_model
from stand_in_runtime import StandInRuntime, VirtualClock

import semla_ros.engines.torch_engine as torch_engine
from semla_ros.config import InferenceConfig
from semla_ros.engines import cuda_graph
from semla_ros.engines.component_engine import ComponentEngine
from semla_ros.engines.components import SCENE_ENCODER
from semla_ros.engines.cuda_graph import GraphedForward
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import EngineError, NotFiniteError, OutOfMemoryError
from semla_ros.segmentation.fixed_component import DECODER
from semla_ros.segmentation.model import CatSeg

IMAGES = [np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8) for seed in range(2)]
BROKEN, NAN, MEMORY = "broken", "nan", "memory"  # how something fails


def text_of(count: int, seed: int = 1) -> torch.Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)), dim=-1)


def overflow(model: CatSeg) -> None:
    """The same answer in fp32; in fp16 the values of an attention layer are infinite."""
    attention = model.sem_seg_head.predictor.clip_model.visual.transformer.resblocks[0].attn
    attention.v_proj.weight.mul_(1e7)
    attention.in_proj_bias[-64:].mul_(1e7)
    attention.out_proj.weight.div_(1e7)


class Fault:
    """Something that fails from a moment on, in the ways of inference that need it.

    Args:
        how: Raises, gives NaN, or runs out of memory.
    """

    def __init__(self, how: str) -> None:
        self.how, self.is_armed, self.count = how, False, 0

    def meet(self, answer: torch.Tensor) -> torch.Tensor:
        """What becomes of an answer."""
        if not self.is_armed:
            return answer
        self.count += 1
        if self.how == NAN:
            return torch.full_like(answer, float("nan"))
        message = "CUDA out of memory. Tried to allocate 2.00 MiB" if self.how == MEMORY else "no kernel image"
        raise (torch.cuda.OutOfMemoryError if self.how == MEMORY else RuntimeError)(message)


def in_half(engine: TorchEngine, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = engine._model.forward

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        answer = plain(*inputs)
        return fault.meet(answer) if torch.is_autocast_enabled("cpu") else answer

    engine._model.forward = forward


def in_batches(engine: TorchEngine, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = engine._model.forward
    engine._model.forward = lambda *inputs: fault.meet(plain(*inputs)) if len(inputs[0]) > 1 else plain(*inputs)


def compiled(engine: TorchEngine, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch_engine.torch, "compile", lambda model, **_options: lambda *inputs: fault.meet(model(*inputs))
    )


def _with_graphs(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, capture: type) -> None:
    engine._way |= {"graphs"}
    monkeypatch.setattr(
        cuda_graph, "GraphedForward", lambda forward, kept: GraphedForward(forward, kept, capture=capture)
    )


def captured(engine: TorchEngine, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def __init__(self, forward: Callable, inputs: list) -> None:
            self.forward = forward
            fault.meet(inputs[0])

        def __call__(self, inputs: list) -> torch.Tensor:
            return self.forward(*inputs)

    _with_graphs(engine, monkeypatch, Graph)


def replayed(engine: TorchEngine, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def __init__(self, forward: Callable, inputs: list) -> None:
            self.forward = forward

        def __call__(self, inputs: list) -> torch.Tensor:
            return fault.meet(self.forward(*inputs))

    _with_graphs(engine, monkeypatch, Graph)


# What fails, the settings under which it serves, the note.
FAULTS = {
    "half": (in_half, {"precision": "fp16"}, "fp32 serves"),
    "batch": (in_batches, {}, "one image at a time serves"),
    "compiled": (compiled, {"compile": True}, "eager serves"),
    "captured": (captured, {}, "eager serves"),
    "replayed": (replayed, {}, "eager serves"),
    "replayed in half": (replayed, {"precision": "fp16"}, "eager serves"),
}
# Where images have finite values their batch has; half precision saves memory; a capture gives no values.
NO_FAULTS = (("batch", NAN), ("half", MEMORY), ("captured", NAN))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> CatSeg:
    made = small_model().requires_grad_(False)
    made.aggregator.head.weight.mul_(4)  # maps that differ by more than rounding
    monkeypatch.setattr(torch_engine, "has_bf16", lambda: False)
    monkeypatch.setattr(torch_engine, "AGREEMENT", 0.9)  # in half this random model is at 0.989
    return made


def made_engine(model: CatSeg, **settings: object) -> TorchEngine:
    engine = TorchEngine(model, InferenceConfig(device="cpu", threads=1, **settings), probe_images=IMAGES)
    engine.set_text(text_of(5))
    return engine


def commit(engine: TorchEngine, count: int) -> None:
    """What a new generation does: weights in place, then the class embeddings."""
    engine._model.aggregator.head.weight.mul_(1.1)
    engine.set_text(text_of(count, seed=count))


def small_copy(model: CatSeg) -> CatSeg:
    """The same weights, without what a test has put around them."""
    own = copy.copy(model)
    vars(own).pop("forward", None)
    return copy.deepcopy(own)


def agrees(engine: TorchEngine, text: torch.Tensor, share: float = 0.999) -> bool:
    """Whether both images alone and together get the masks of plain fp32."""
    plain = TorchEngine(small_copy(engine._model), InferenceConfig(device="cpu", threads=1))
    plain.set_text(text)
    expected = [plain.segment(image).mask for image in IMAGES]
    given = [engine.segment_batch(IMAGES), [engine.segment(image) for image in IMAGES]]
    return all(np.mean([(a.mask == b).mean() for a, b in zip(some, expected, strict=True)]) >= share for some in given)


@pytest.mark.parametrize("when", ["at warm-up", "at the third frame", "after a commit"])
@pytest.mark.parametrize(
    ("what", "how"),
    [pair for pair in itertools.product(FAULTS, (BROKEN, NAN, MEMORY)) if pair not in NO_FAULTS],
)
def test_whatever_fails_whenever_every_image_is_answered_as_in_plain_fp32(model, monkeypatch, what, how, when) -> None:
    install, settings, note = FAULTS[what]
    fault, engine = Fault(how), made_engine(model, **settings)
    install(engine, fault, monkeypatch)
    fault.is_armed = when == "at warm-up"
    engine.warm_up()
    count = 5
    if not fault.is_armed:
        assert engine.notes == []
        engine.segment_batch(IMAGES)
        engine.segment(IMAGES[0])
    if when == "after a commit":
        commit(engine, count := 9)
    if what == "captured" and when == "at the third frame":
        engine._graph = None  # as with another number of cameras
    fault.is_armed = True
    share = 0.97 if what == "replayed in half" else 0.999  # half precision goes on where it is not to blame
    assert agrees(engine, text_of(count, seed=count if count > 5 else 1), share)
    (found,) = engine.notes
    assert found.startswith(note)
    reason = {BROKEN: "no kernel image", NAN: "not finite", MEMORY: "out of memory"}[how]
    assert reason in found
    met = fault.count
    for classes in (5, 12):
        commit(engine, classes)
        assert agrees(engine, text_of(classes, seed=classes), share)
    assert fault.count == met, "what failed was used again"
    assert len(engine.notes) == 1


@pytest.mark.parametrize("when", ["at warm-up", "at the third frame", "after a commit"])
def test_weights_that_overflow_in_fp16_are_answered_in_fp32(model, when: str) -> None:
    engine = made_engine(model, precision="fp16")
    if when == "at warm-up":
        overflow(model)
    engine.warm_up()
    if when != "at warm-up":
        assert engine.precision == "fp16"
        engine.segment_batch(IMAGES)
        overflow(model)
    if when == "after a commit":
        commit(engine, 5)
    assert agrees(engine, text_of(5, seed=5 if when == "after a commit" else 1))
    assert engine.precision == "fp32"
    assert engine.notes == ["fp32 serves: class scores in fp16 are not finite"]


def test_where_fp16_fails_at_warm_up_bf16_is_next(model, monkeypatch) -> None:
    monkeypatch.setattr(torch_engine, "has_bf16", lambda: True)
    overflow(model)
    engine = made_engine(model, precision="fp16")
    engine.warm_up()
    assert engine.precision == "bf16"
    assert engine.notes == ["bf16 serves: class scores in fp16 are not finite"]


def test_infinite_scores_are_no_probabilities_of_one(model) -> None:
    """A sigmoid would make 1 of them, and a mask that looks like any other."""
    assert model.config.probability == "sigmoid"
    model.aggregator.head.bias.fill_(float("inf"))
    with pytest.raises(NotFiniteError, match="weights are damaged"):
        made_engine(model).segment(IMAGES[0])


@pytest.mark.parametrize("error", [NotFiniteError, OutOfMemoryError, EngineError])
def test_what_fails_in_every_way_is_an_error_of_its_own_and_costs_nothing_that_works(model, monkeypatch, error) -> None:
    """A damaged adapter may not take half precision and graphs from those that follow it."""
    fault = Fault({NotFiniteError: NAN, OutOfMemoryError: MEMORY, EngineError: BROKEN}[error])
    engine = made_engine(model, precision="fp16")
    replayed(engine, Fault(BROKEN), monkeypatch)
    plain = model.forward
    model.forward = lambda *inputs: fault.meet(plain(*inputs))
    engine.warm_up()
    way, fault.is_armed = engine._way, True
    for ask in (lambda: engine.segment(IMAGES[0]), lambda: engine.segment_batch(IMAGES)):
        with pytest.raises(EngineError) as caught:
            ask()
        assert type(caught.value) is error
    fault.is_armed = False
    assert agrees(engine, text_of(5), 0.97)
    assert engine._way == way
    assert engine.notes == []


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
    ],
)
def test_memory_that_is_short_once_costs_no_image_and_long_is_an_error_of_its_own(model, raised) -> None:
    engine, plain, is_short = made_engine(model), model.forward, iter([True, False] * 2 + [True])

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        if next(is_short, False):
            raise raised
        return plain(*inputs)

    model.forward = forward
    for image in IMAGES:
        assert np.array_equal(engine.segment(image).mask, made_engine(small_copy(model)).segment(image).mask)
    assert [note.partition(" (")[0] for note in engine.notes] == ["an image took a second try: out of memory"]
    assert agrees(engine, text_of(5))
    assert [note.partition(" (")[0] for note in engine.notes[1:]] == ["one image at a time serves: out of memory"]

    def never(*_inputs: torch.Tensor) -> torch.Tensor:
        raise raised

    model.forward = never
    with pytest.raises(OutOfMemoryError, match="out of memory"):
        engine.segment(IMAGES[0])


def test_a_pass_that_failed_holds_no_memory_while_the_next_one_runs(model) -> None:
    engine, plain, held = made_engine(model), model.forward, []

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        assert [reference for reference in held if reference() is not None] == []
        intermediate = inputs[0] * 2
        held.append(weakref.ref(intermediate))
        if len(held) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return plain(*inputs)

    model.forward = forward
    engine.segment(IMAGES[0])
    assert len(held) == 2


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("step", ["copy", "padding", "values", "shape"])
def test_class_embeddings_are_taken_whole_or_the_former_ones_stay(model, monkeypatch, step: str) -> None:
    engine = made_engine(model)
    replayed(engine, Fault(BROKEN), monkeypatch)
    engine.warm_up()
    expected, graph, state = engine.segment(IMAGES[0]).mask, engine._graph, (engine._text, engine._held)
    text = text_of(9)
    if step == "copy":
        text = torch.empty(9, 32, device="meta")
    elif step == "padding":
        monkeypatch.setattr(torch_engine, "pad_vocabulary", lambda *_: _raise(torch.cuda.OutOfMemoryError("no memory")))
    elif step == "values":
        text[8, 31] = float("nan")
    else:
        text = text[:, 1:]
    with pytest.raises(EngineError):
        engine.set_text(text)
    assert (engine._text, engine._held) == state
    assert engine._graph is graph
    assert np.array_equal(engine.segment(IMAGES[0]).mask, expected)
    assert engine.notes == []


def test_the_stage_is_told_to_other_threads_also_where_it_hangs(model) -> None:
    engine, plain, is_reached, may_go = made_engine(model), model.forward, threading.Event(), threading.Event()

    def hanging(*inputs: torch.Tensor) -> torch.Tensor:
        is_reached.set()
        assert may_go.wait(20)
        return plain(*inputs)

    assert engine.stage is None
    model.forward = hanging
    thread = threading.Thread(target=engine.segment, args=(IMAGES[0],))
    before_s = time.monotonic()
    thread.start()
    assert is_reached.wait(20)
    name, since_s = engine.stage
    assert name == "forward"
    assert before_s <= since_s <= time.monotonic()
    may_go.set()
    thread.join(20)
    assert engine.stage is None
    model.forward = lambda *_: _raise(RuntimeError("no kernel image"))
    with pytest.raises(EngineError):
        engine.segment(IMAGES[0])
    assert engine.stage is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_capture_that_fails_leaves_eager_on_the_usual_stream(model) -> None:
    engine = TorchEngine(model, InferenceConfig(device="cuda"))
    engine.set_text(text_of(5))
    engine.warm_up()
    assert engine.notes == []
    plain, stream = model.forward, torch.cuda.current_stream()

    def waiting(*inputs: torch.Tensor) -> torch.Tensor:
        inputs[0].sum().item()  # not allowed in a capture
        return plain(*inputs)

    model.forward = waiting
    engine._graph = None
    assert agrees(engine, text_of(5), 0.99)
    assert torch.cuda.current_stream() == stream
    assert engine.notes[0].startswith("eager serves")


# Components in other runtimes


class FailingRuntime(StandInRuntime):
    """Runners whose answers meet a fault."""

    def __init__(self, fault: Fault, component: str) -> None:
        super().__init__("onnx", VirtualClock(), {"onnx": 0.5}, components=(component,))
        self.fault = fault

    def makers(self, component):
        def make():
            runner = super(FailingRuntime, self)._make(component, "onnx")
            return _Watched(runner, self.fault)

        return [make]


class _Watched:
    runtime = "onnx"

    def __init__(self, runner, fault: Fault) -> None:
        self.runner, self.fault, self.is_closed = runner, fault, False

    def __call__(self, *inputs):
        assert not self.is_closed
        return self.fault.meet(self.runner(*inputs))

    def close(self) -> None:
        self.is_closed = True
        if self.fault.is_armed:
            raise RuntimeError("no kernel image")


def component_engine(world, fault: Fault, name: str) -> ComponentEngine:
    runtime = FailingRuntime(fault, name)
    engine = ComponentEngine(
        world.torch_engine, [world.component(name)], [runtime], probe_images=world.images, measure=runtime.clock
    )
    engine.warm_up()
    assert engine.name == f"onnx ({name})"
    return engine


@pytest.mark.parametrize("how", [BROKEN, NAN, MEMORY])
@pytest.mark.parametrize("when", ["at the first frame", "after a commit"])
@pytest.mark.parametrize("name", [SCENE_ENCODER, DECODER])
def test_a_runtime_that_fails_while_serving_gives_its_component_back_for_good(world, how, when, name) -> None:
    def answer() -> np.ndarray:
        return world.encoder.embed(world.images[0]) if name == SCENE_ENCODER else engine.segment(world.images[0]).mask

    fault = Fault(how)
    engine = component_engine(world, fault, name)
    if when == "after a commit":
        engine.set_text(world.text.flip(0))
    expected = answer()
    fault.is_armed = True
    assert np.array_equal(answer(), expected)
    assert engine.name == "torch"
    (note,) = engine.notes
    assert {BROKEN: "no kernel image", NAN: "not finite", MEMORY: "out of memory"}[how] in note
    met = fault.count
    engine.set_text(world.text)
    answer()
    assert fault.count == met
    assert len(engine.notes) == 1
    engine.close()


@pytest.mark.parametrize("name", [SCENE_ENCODER, DECODER])
def test_a_runtime_is_not_blamed_for_damaged_weights(world, name) -> None:
    engine = component_engine(world, Fault(BROKEN), name)
    module = world.encoder.tower if name == SCENE_ENCODER else world.model.aggregator.head
    weight = next(module.parameters())
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(Exception, match="not finite"):
        world.encoder.embed(world.images[0]) if name == SCENE_ENCODER else engine.segment(world.images[0])
    with torch.no_grad():
        weight.copy_(kept)
    engine.segment(world.images[0])
    assert engine.name == f"onnx ({name})"
    assert engine.notes == []


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyError("missing"), MemoryError()])
def test_a_runner_that_cannot_be_made_for_any_reason_leaves_torch(world, error) -> None:
    class Unmakeable(StandInRuntime):
        def makers(self, component):
            return [lambda: _raise(error)] if self.name == "onnx" else _raise(error)

        def start(self) -> None:
            raise error

    runtimes = [Unmakeable(name, VirtualClock(), {}) for name in ("onnx", "openvino")]
    engine = ComponentEngine(world.torch_engine, world.components, runtimes, probe_images=world.images)
    engine.warm_up()
    assert engine.segment(world.images[0]).mask.shape == (96, 128)
    assert engine.name == "torch"
    assert engine.notes
