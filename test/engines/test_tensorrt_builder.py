import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_tensorrt import fake_module

from semla_ros.engines.tensorrt.build_process import SubprocessBuilder
from semla_ros.engines.tensorrt.builder import BuildRequest, build_plan, check_version, load_tensorrt
from semla_ros.engines.tensorrt.runner import TensorRtRunner, TensorRtToolkit
from semla_ros.errors import EngineError

SHAPES = {"maps": ((1, 4), (8, 4), (16, 4))}
WORKSPACE = 1 << 28  # bytes


@pytest.fixture
def request_(tmp_path) -> BuildRequest:
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"graph")
    return BuildRequest(graph=str(graph), destination=str(tmp_path / "out.plan"), profiles=SHAPES)


def test_a_plan_is_strongly_typed_for_the_range_of_shapes(request_) -> None:
    trt = fake_module()
    build_plan(request_, trt, WORKSPACE)
    assert Path(request_.destination).read_bytes() == b"plan"
    assert ("create_network", 1 << 1) in trt.log
    assert ("parse", b"graph") in trt.log
    assert ("set_memory_pool_limit", 0, WORKSPACE) in trt.log
    assert ("set_shape", "maps", *SHAPES["maps"]) in trt.log


def test_a_graph_or_build_that_fails_says_why(request_) -> None:
    with pytest.raises(EngineError, match="operator Foo is not known"):
        build_plan(request_, fake_module(parses=False), WORKSPACE)
    with pytest.raises(EngineError, match="built no plan"):
        build_plan(request_, fake_module(plan=None), WORKSPACE)
    with pytest.raises(EngineError, match="refuses the range of shapes"):
        build_plan(request_, fake_module(takes_profile=False), WORKSPACE)
    assert not Path(request_.destination).exists()


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


def test_a_builder_process_writes_the_plan_that_is_asked_for(request_) -> None:
    code = (
        "import json, sys\n"
        "request = json.loads(sys.argv[1])\n"
        "print('a library says hello')\n"
        "open(request['destination'], 'w').write('plan')\n"
    )
    python(code).build(request_)
    assert Path(request_.destination).read_text() == "plan"


def test_a_builder_process_that_dies_is_an_error_with_its_last_line(request_) -> None:
    with pytest.raises(EngineError, match=r"status 3 \(out of memory\)"):
        python("import sys; sys.stderr.write('out of memory\\n'); sys.exit(3)").build(request_)
    with pytest.raises(EngineError, match="status -11"):
        python("import os; os.kill(os.getpid(), 11)").build(request_)


def stop_once_it_runs(builder: SubprocessBuilder, started: Path) -> threading.Thread:
    """Stop a builder whose program makes a file."""

    def stop() -> None:
        while not started.exists():
            time.sleep(0.01)
        builder.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    return thread


def test_a_builder_process_can_be_ended(request_, tmp_path) -> None:
    builder = python(f"open({str(tmp_path / 'started')!r}, 'w'); import time; time.sleep(60)")
    stopping = stop_once_it_runs(builder, tmp_path / "started")
    with pytest.raises(EngineError, match="status -15"):
        builder.build(request_)
    stopping.join()


def test_a_stop_that_comes_while_the_process_is_starting_is_not_missed(request_, monkeypatch) -> None:
    builder = python("import time; time.sleep(10)")
    plain, stops = subprocess.Popen, []

    def slow_start(*given, **named):
        stops.append(threading.Thread(target=builder.stop))
        stops[0].start()
        stops[0].join(0.3)  # long enough for a stop that does not wait for the start
        return plain(*given, **named)

    monkeypatch.setattr(subprocess, "Popen", slow_start)
    with pytest.raises(EngineError, match="status -15"):
        builder.build(request_)
    stops[0].join()


def test_a_builder_that_was_stopped_starts_nothing_more(request_, tmp_path) -> None:
    builder = python(f"open({str(tmp_path / 'started')!r}, 'w')")
    builder.stop()
    with pytest.raises(EngineError, match="was stopped"):
        builder.build(request_)
    assert not (tmp_path / "started").exists()


def test_a_builder_process_that_does_not_end_when_asked_is_killed(request_, tmp_path) -> None:
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'started')!r}, 'w')\n"
        "time.sleep(10)\n"
    )
    builder = SubprocessBuilder((sys.executable, "-c", code), grace_s=0.2)
    stopping = stop_once_it_runs(builder, tmp_path / "started")
    with pytest.raises(EngineError, match="status -9"):
        builder.build(request_)
    stopping.join()


def test_a_builder_that_cannot_be_started_is_an_error(request_) -> None:
    with pytest.raises(EngineError, match="cannot be started"):
        SubprocessBuilder(("/no/such/program",)).build(request_)


def test_an_interrupt_leaves_no_process_behind(request_, monkeypatch) -> None:
    builder, processes = python("import time; time.sleep(10)"), []

    def interrupted(process) -> int:
        if not processes:
            processes.append(process)
            raise KeyboardInterrupt
        return plain(process)

    plain = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    builder._command[-1] = "import os, time; os.close(1); os.close(2); time.sleep(10)"  # its output ends, it goes on
    with pytest.raises(KeyboardInterrupt):
        builder.build(request_)
    assert processes[0].poll() == -9


def test_the_input_of_a_builder_process_stays_open_while_it_builds(request_) -> None:
    code = (
        "import select, sys\n"
        "has_ended = bool(select.select([sys.stdin], [], [], 0.3)[0])\n"
        "sys.exit(7 if has_ended else 0)\n"
    )
    python(code).build(request_)


def start_worker(request: BuildRequest, build_plan: str) -> subprocess.Popen:
    """The real builder process with a stand-in for TensorRT and for what selects a GPU."""
    code = (
        "import sys, time\n"
        "import semla_ros.engines.tensorrt.builder as worker\n"
        "selected = []\n"
        "worker.load_tensorrt = lambda: 'tensorrt'\n"
        "worker.make_current = selected.append\n"
        "worker.torch.cuda.mem_get_info = lambda index: (1000 * index, 4000)\n"
        f"def build_plan(request, trt, workspace_bytes):\n    {build_plan}\n"
        "worker.build_plan = build_plan\n"
        "sys.exit(worker.main())\n"
    )
    pipe = subprocess.PIPE
    argument = json.dumps(dataclasses.asdict(request))
    return subprocess.Popen([sys.executable, "-c", code, argument], stdin=pipe, stdout=pipe, text=True)


def test_a_builder_process_whose_parent_has_died_ends(request_) -> None:
    """Closing its input is what the death of the parent does."""
    with start_worker(request_, "print('tactics', flush=True); time.sleep(20)") as process:
        assert "tactics" in process.stdout.readline()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(10) == 3


def test_a_builder_process_builds_on_the_gpu_of_the_request_in_half_of_its_free_memory(request_) -> None:
    request = dataclasses.replace(request_, device_index=1)
    with start_worker(request, "print(f'{trt} on {selected} for {request.profiles} in {workspace_bytes}')") as process:
        assert process.stdout.readline() == "tensorrt on [1] for {'maps': [[1, 4], [8, 4], [16, 4]]} in 500\n"
        assert process.wait(10) == 0


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_the_real_builder_process_says_what_is_missing(request_) -> None:
    with pytest.raises(EngineError, match=r"needs TensorRT 10\.3 to 11"):
        SubprocessBuilder().build(request_)


class FakePlan:
    """Engine and execution context of `output = first + 10 * second`, which lists its second input first."""

    def __init__(self) -> None:
        self.names = ["second", "first", "output"]
        self.kinds = dict.fromkeys(self.names, "FLOAT")
        self.num_io_tensors = 3
        self.inputs: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.refused_addresses: set[str] = set()
        self.enqueues = True

    # Of the engine

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name == "output" else "in"

    def get_tensor_dtype(self, name: str) -> str:
        return self.kinds[name]

    def create_execution_context(self):
        return self

    # Of both: shapes as built, and those of the present call where all inputs have one

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.inputs["first"] if name == "output" and len(self.inputs) == 2 else (-1, 3)

    # Of the context

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.inputs[name] = shape
        return shape[0] <= 8

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name not in self.refused_addresses

    def execute_async_v3(self, stream: int) -> bool:
        first, second, output = (self._tensor(name) for name in ("first", "second", "output"))
        output[:] = first + 10 * second
        return self.enqueues

    def _tensor(self, name: str) -> np.ndarray:
        count = int(np.prod(self.inputs["first"]))
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name]))


def module_with(engine) -> SimpleNamespace:
    return SimpleNamespace(
        __version__="10.3.0",
        Logger=type("Logger", (), {"WARNING": 2, "__init__": lambda self, severity: None}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: engine),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        DataType=SimpleNamespace(FLOAT="FLOAT", HALF="HALF"),
    )


@pytest.fixture
def plan_path(tmp_path):
    path = tmp_path / "x.engine"
    path.write_bytes(b"plan")
    return path


@pytest.fixture
def plan() -> FakePlan:
    return FakePlan()


@pytest.fixture
def runner(plan_path, plan) -> TensorRtRunner:
    return TensorRtRunner(plan_path, ("first", "second"), torch.device("cpu"), module_with(plan))


class Gpus:
    """Two GPUs of which one is current, through torch's calls."""

    def __init__(self, monkeypatch) -> None:
        self.current = 0
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: ("Orin", "A4000")[device.index])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ((8, 7), (8, 6))[device.index])

    @contextlib.contextmanager
    def device(self, device: torch.device):
        before, self.current = self.current, device.index
        yield
        self.current = before


def test_the_toolkit_of_another_gpu_has_its_name_and_index(monkeypatch) -> None:
    gpus = Gpus(monkeypatch)
    toolkit = TensorRtToolkit(torch.device("cuda:1"), trt=fake_module())
    assert (toolkit.device_index, toolkit.device) == (1, "A4000 sm_86")
    assert TensorRtToolkit(torch.device("cuda"), trt=fake_module()).device_index == 0
    gpus.current = 1
    assert TensorRtToolkit(torch.device("cuda"), trt=fake_module()).device == "A4000 sm_86"


def test_a_plan_is_loaded_while_its_gpu_is_the_current_one(plan_path, plan, monkeypatch) -> None:
    gpus = Gpus(monkeypatch)
    module, seen = module_with(plan), []
    module.Runtime = lambda logger: SimpleNamespace(
        deserialize_cuda_engine=lambda content: seen.append(gpus.current) or plan
    )
    plan.create_execution_context = lambda: seen.append(gpus.current) or plan
    TensorRtToolkit(torch.device("cuda:1"), trt=module).load(plan_path, ("first", "second"))
    assert seen == [1, 1]
    assert gpus.current == 0


def test_inputs_reach_the_plan_by_name_whatever_order_it_lists_them_in(runner) -> None:
    first, second = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert torch.equal(runner(first, second), torch.full((2, 3), 21.0))
    assert torch.equal(runner(second, first), torch.full((2, 3), 12.0))
    runner.close()


def test_calls_of_another_shape_have_a_context_of_their_own(plan_path, plan) -> None:
    """A graph may have captured the one before."""
    made: list[FakePlan] = []
    plan.create_execution_context = lambda: made.append(FakePlan()) or made[-1]
    runner = TensorRtRunner(plan_path, ("first", "second"), torch.device("cpu"), module_with(plan))
    assert len(made) == 1
    for rows in (2, 3, 2, 4):
        runner(torch.ones(rows, 3), torch.ones(rows, 3))
    assert [item.inputs["first"] for item in made] == [(2, 3), (3, 3), (4, 3)]
    runner(torch.ones(3, 3), torch.ones(3, 3))
    assert len(made) == 3


def test_an_input_that_does_not_fit_the_plan_is_named_before_its_memory_is_read(runner, plan) -> None:
    good = torch.ones(2, 3)
    for inputs, message in [
        ((torch.ones(9, 3), good), "refuses shape .9, 3. for 'first'"),
        ((good, torch.ones(2, 4)), "'second' has shape .2, 4., the plan was built for .-1, 3."),
        ((good, torch.ones(2, 3, 1)), "'second' has shape .2, 3, 1."),
        ((good.half(), good), "'first' is torch.float16 on 'cpu', the plan takes fp32"),
        ((good, torch.ones(2, 3, device="meta")), "'second' is torch.float32 on 'meta'"),
        ((good,), "takes 2 inputs, got 1"),
    ]:
        with pytest.raises(EngineError, match=message):
            runner(*inputs)


def test_what_the_runtime_refuses_is_an_error_that_names_the_tensor(runner, plan) -> None:
    good = torch.ones(2, 3)
    for name in plan.names:
        plan.refused_addresses = {name}
        with pytest.raises(EngineError, match=f"refuses the memory of '{name}'"):
            runner(good, good)
    plan.refused_addresses = set()
    plan.enqueues = False
    with pytest.raises(EngineError, match="could not enqueue"):
        runner(good, good)


def test_a_plan_with_other_tensors_is_refused_when_it_is_loaded(plan_path, plan) -> None:
    for names in (("first",), ("first", "third")):
        with pytest.raises(EngineError, match=r"has the inputs \['first', 'second'\], expected"):
            TensorRtRunner(plan_path, names, torch.device("cpu"), module_with(plan))
    plan.kinds["second"] = "HALF"
    with pytest.raises(EngineError, match="has 'second' as HALF, expected fp32"):
        TensorRtRunner(plan_path, ("first", "second"), torch.device("cpu"), module_with(plan))


def test_a_plan_of_another_version_is_an_error_not_a_crash(plan_path) -> None:
    with pytest.raises(EngineError, match=r"refuses the plan x\.engine"):
        TensorRtRunner(plan_path, ("first", "second"), torch.device("cpu"), module_with(None))
