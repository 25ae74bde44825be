import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from fake_tensorrt import fake_module

from semla_ros.engines.build import BuildRequest, SubprocessBuilder
from semla_ros.engines.tensorrt_build import build_plan, check_version, load_tensorrt
from semla_ros.engines.tensorrt_runtime import TensorRtRunner
from semla_ros.errors import EngineError

SHAPES = {"maps": ((1, 4), (8, 4), (16, 4))}


@pytest.fixture
def request_(tmp_path) -> BuildRequest:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"graph")
    return BuildRequest(
        graph=graph, destination=tmp_path / "out.plan", timing_cache=tmp_path / "timing.cache", profiles=SHAPES
    )


def test_a_plan_is_strongly_typed_and_its_progress_is_that_of_the_outermost_phase(request_) -> None:
    trt = fake_module()
    told = []
    build_plan(request_, lambda share, phase: told.append((share, phase)), trt)
    assert request_.destination.read_bytes() == b"plan"
    assert ("create_network", 1 << 1) in trt.log
    assert ("parse", b"graph") in trt.log
    assert ("set_shape", "maps", *SHAPES["maps"]) in trt.log
    assert not [call for call in trt.log if call[0] == "set_flag"]
    assert told == [(0.25, "build"), (0.5, "build"), (0.75, "build"), (1.0, "build")]


def test_a_version_without_the_flag_is_strongly_typed_by_itself(request_) -> None:
    trt = fake_module(version="11.1.0", has_strong_typing_flag=False)
    build_plan(request_, lambda share, phase: None, trt)
    assert ("create_network", 0) in trt.log


def test_only_a_refit_request_asks_for_replaceable_weights(request_) -> None:
    trt = fake_module()
    values = BuildRequest.from_json(request_.as_json().replace('"refit": false', '"refit": true'))
    assert values.profiles == SHAPES
    build_plan(values, lambda share, phase: None, trt)
    assert ("set_flag", "REFIT") in trt.log


def test_the_timing_cache_is_kept_and_a_foreign_one_is_replaced(request_) -> None:
    build_plan(request_, lambda share, phase: None, fake_module())
    assert request_.timing_cache.read_bytes() == b"+"
    build_plan(request_, lambda share, phase: None, fake_module())
    assert request_.timing_cache.read_bytes() == b"++"
    build_plan(request_, lambda share, phase: None, fake_module(takes_timing_cache=False))
    assert request_.timing_cache.read_bytes() == b"+"


def test_a_graph_or_build_that_fails_says_why(request_) -> None:
    with pytest.raises(EngineError, match="operator Foo is not known"):
        build_plan(request_, lambda share, phase: None, fake_module(parses=False))
    with pytest.raises(EngineError, match="built no plan"):
        build_plan(request_, lambda share, phase: None, fake_module(plan=None))
    assert not request_.destination.exists()


@pytest.mark.parametrize("version", ["10.3.0", "10.13.2.6", "11.0.0", "11.4.1"])
def test_versions_from_10_3_to_11_are_taken(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.0", "unknown"])
def test_other_versions_are_refused_by_number(version: str) -> None:
    with pytest.raises(EngineError, match=f"found {version}"):
        check_version(version)


def test_without_tensorrt_the_error_tells_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="pip install tensorrt"):
        load_tensorrt()


def python(code: str) -> SubprocessBuilder:
    return SubprocessBuilder((sys.executable, "-c", code))


def test_a_builder_process_tells_progress_and_writes_the_plan(request_) -> None:
    told = []
    code = (
        "import json, sys\n"
        "request = json.loads(sys.stdin.read())\n"
        "print('a library says hello')\n"
        "print(json.dumps({'progress': 0.5, 'phase': 'tactics'}), flush=True)\n"
        "open(request['destination'], 'w').write('plan')\n"
    )
    python(code).build(request_, lambda share, phase: told.append((share, phase)))
    assert told == [(0.5, "tactics")]
    assert request_.destination.read_text() == "plan"


def test_a_builder_process_that_dies_is_an_error_with_its_last_line(request_) -> None:
    with pytest.raises(EngineError, match=r"status 3 \(out of memory\)"):
        python("import sys; sys.stderr.write('out of memory\\n'); sys.exit(3)").build(request_, lambda *_: None)
    with pytest.raises(EngineError, match="status -11"):
        python("import os; os.kill(os.getpid(), 11)").build(request_, lambda *_: None)


def test_a_builder_process_can_be_ended(request_) -> None:
    builder = python("print('{\"progress\": 0.1}', flush=True); import time; time.sleep(60)")

    def report(share: float, phase: str) -> None:
        builder.stop()

    with pytest.raises(EngineError, match="status -15"):
        builder.build(request_, report)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_the_real_builder_process_says_what_is_missing(request_) -> None:
    with pytest.raises(EngineError, match=r"needs TensorRT 10\.3 to 11"):
        SubprocessBuilder().build(request_, lambda *_: None)


class FakeRefitter:
    """Combines two weights: replacing one needs the other."""

    def __init__(self, engine, _logger) -> None:
        self.engine = engine
        self.given: list[str] = []

    def get_all_weights(self) -> list[str]:
        return ["a"] if self.engine.hides_bias else ["a", "b"]

    def get_missing_weights(self) -> list[str]:
        return [name for name in ("a", "b", *self.engine.unknown) if name not in self.given]

    def set_named_weights(self, name, weights, location) -> bool:
        assert location == "HOST"
        assert weights[0] == "HALF"
        self.given.append(name)
        return name != self.engine.refused

    def refit_cuda_engine_async(self, stream) -> bool:
        self.engine.streams.append(stream)
        return self.engine.refits


def refit_runner(**changes) -> TensorRtRunner:
    engine = SimpleNamespace(hides_bias=False, unknown=(), refused="", refits=True, streams=[])
    for name, value in changes.items():
        setattr(engine, name, value)
    runner = object.__new__(TensorRtRunner)
    runner._engine, runner._logger, runner._device = engine, None, torch.device("cpu")
    runner._trt = SimpleNamespace(
        Refitter=FakeRefitter,
        DataType=SimpleNamespace(FLOAT="FLOAT", HALF="HALF"),
        TensorLocation=SimpleNamespace(DEVICE="DEVICE", HOST="HOST"),
        Weights=lambda kind, pointer, count: (kind, pointer, count),
    )
    return runner


WEIGHTS = {"a": torch.ones(2).half(), "b": torch.ones(3).half(), "unused": torch.ones(1).half()}


def test_a_refit_gives_every_weight_and_those_that_depend_on_it() -> None:
    for hides_bias in (False, True):
        runner = refit_runner(hides_bias=hides_bias)
        runner.refit(WEIGHTS)
        assert runner._engine.streams == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unknown": ("folded_7",)}, "needs 1 more weights, first 'folded_7'"),
        ({"refused": "b"}, "weight 'b' of shape"),
        ({"refits": False}, "replaced in part"),
    ],
)
def test_a_refit_that_is_not_complete_is_an_error(changes, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        refit_runner(**changes).refit(WEIGHTS)


class FakeContext:
    """Doubles its input, through the calls of an execution context."""

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.shape = ()
        self.enqueues = True

    def set_input_shape(self, name, shape) -> bool:
        self.shape = shape
        return shape[0] <= 8

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream) -> bool:
        return self.enqueues


def module_with(engine) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="10.3.0",
        Logger=type("Logger", (), {"WARNING": 2, "__init__": lambda self, severity: None}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: engine),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
    )


def test_a_plan_runs_with_the_shapes_and_addresses_of_its_tensors(tmp_path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(b"plan")
    context = FakeContext()
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda index: ("images", "output")[index],
        get_tensor_mode=lambda name: "in" if name == "images" else "out",
        create_execution_context=lambda: context,
    )
    runner = TensorRtRunner(path, torch.device("cpu"), module_with(engine))
    images = torch.ones(2, 3)
    output = runner(images)
    assert output.shape == (2, 3)
    assert context.addresses == {"images": images.data_ptr(), "output": output.data_ptr()}
    with pytest.raises(EngineError, match="refuses shape"):
        runner(torch.ones(9, 3))
    context.enqueues = False
    with pytest.raises(EngineError, match="could not enqueue"):
        runner(images)
    runner.close()


def test_a_plan_of_another_version_is_an_error_not_a_crash(tmp_path) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(b"plan")
    with pytest.raises(EngineError, match=r"refuses the plan x\.engine"):
        TensorRtRunner(path, torch.device("cpu"), module_with(None))
