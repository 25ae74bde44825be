"""The calls to TensorRT against what its own bindings document, from 10.3 to 11.4.

tensorrt_api.json holds the signatures of all names that are called; `tools/tensorrt_api.py` writes it from the wheels.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from semla_ros.engines.tensorrt.builder import BuildRequest, build_plan
from semla_ros.engines.tensorrt.runner import TensorRtRunner
from semla_ros.errors import EngineError

RECORD = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
VERSIONS = ("10.3.0", "10.16.1.11", "11.0.0.114", "11.4.0.106")
PLAIN = {"int": int, "str": str, "buffer": bytes, "Dims": tuple, "tuple": tuple}
ANSWERS = {"bool": True, "int": 0, "str": "said so", "IHostMemory": b"plan", "None": None}


class Bindings:
    """The TensorRT module of one version, made of its signatures: other names and arguments are refused.

    Args:
        version: One of `VERSIONS`.
        answers: Name -> what a value, or a call, gives instead of something of its type.

    Attributes:
        used: Names that were asked for.
    """

    def __init__(self, version: str, answers: dict[str, object] | None = None) -> None:
        self.__version__ = version
        self.used: set[str] = set()
        self._answers = answers or {}
        self._signatures = {
            name: signature.split("\n")
            for name, item in RECORD.items()
            for signature, versions in item.items()
            if version in versions.split()
        }
        bindings = self

        class ILogger(Thing):
            """The only class that is derived from."""

            def __init__(self) -> None:
                super().__init__(bindings, "ILogger")
                bindings.call("ILogger.__init__", self)

            Severity = Thing(bindings, "ILogger.Severity")

        self.ILogger = ILogger

    def __getattr__(self, kind: str) -> Thing:
        if not any(name.partition(".")[0] == kind for name in self._signatures):
            raise AttributeError(kind)
        return Thing(self, kind)

    def member(self, kind: str, name: str) -> object:
        """An attribute of something of a class."""
        path = f"{kind}.{name}"
        if path not in self._signatures:
            raise AttributeError(f"TensorRT {self.__version__} has no {path}")
        if self._signatures[path] != ["value"]:
            return lambda *given: self.call(path, Thing(self, kind), *given)
        self.used.add(path)
        # The package's own __init__ copies the severities to this class.
        return self._answers.get(path, Thing(self, "ILogger.Severity" if kind == "Logger" else kind))

    def call(self, path: str, *given: object) -> object:
        """What a function gives for arguments that fit one of its signatures."""
        self.used.add(path)
        for signature in self._signatures[path]:
            if self._fits(signature, given):
                kind = signature.rpartition(" -> ")[2].replace("nvonnxparser::I", "")
                answer = self._answers.get(path, ANSWERS[kind] if kind in ANSWERS else Thing(self, kind))
                return answer(*given[1:]) if callable(answer) and not isinstance(answer, Thing) else answer
        raise TypeError(f"{path} takes {self._signatures[path]}, got {given}")

    def _fits(self, signature: str, given: tuple[object, ...]) -> bool:
        arguments = re.findall(r"(\w+): ([\w.]+)( = )?", re.sub("<.*?>", "", signature.rpartition(" -> ")[0]))
        needed = sum(not default for *_, default in arguments)
        return needed <= len(given) <= len(arguments) and all(
            self._is_a(item, kind) for item, (_, kind, _) in zip(given, arguments, strict=False)
        )

    def _is_a(self, item: object, kind: str) -> bool:
        if not isinstance(item, Thing):
            return kind in PLAIN and type(item) is PLAIN[kind]
        return item.kind == kind or self._signatures.get(item.kind) == [f"class of {kind}"]


class Thing:
    """An object of a class of the bindings, or the class itself."""

    def __init__(self, bindings: Bindings, kind: str) -> None:
        self.bindings, self.kind = bindings, kind

    def __getattr__(self, name: str) -> object:
        return self.bindings.member(self.kind, name)

    def __call__(self, *given: object) -> Thing:
        made = Thing(self.bindings, self.kind)
        self.bindings.call(f"{self.kind}.__init__", made, *given)
        return made

    def __int__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and other.kind == self.kind

    __hash__ = None


def engine_answers(bindings_version: str) -> dict[str, object]:
    """A plan with one input, two rows of three values, and an output of that shape."""
    output = Thing(Bindings(bindings_version), "another mode")
    return {
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.get_tensor_name": lambda index: ("x", "y")[index],
        "ICudaEngine.get_tensor_mode": lambda name: (
            output if name == "y" else Thing(Bindings(bindings_version), "TensorIOMode")
        ),
        "ICudaEngine.get_tensor_shape": (-1, 3),
        "IExecutionContext.get_tensor_shape": (2, 3),
    }


@pytest.fixture
def request_(tmp_path) -> BuildRequest:
    (tmp_path / "graph.onnx").write_bytes(b"graph")
    return BuildRequest(
        graph=str(tmp_path / "graph.onnx"), destination=str(tmp_path / "plan"), profiles={"x": ((1, 3), (2, 3), (4, 3))}
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_fits_the_signatures_of_the_bindings(version: str, request_: BuildRequest) -> None:
    used: set[str] = set()
    trt = Bindings(version)
    build_plan(request_, trt, workspace_bytes=1 << 20)
    used |= trt.used
    trt = Bindings(version, {"OnnxParser.parse": False, "OnnxParser.num_errors": 1})
    with pytest.raises(EngineError, match="cannot read the graph: said so"):
        build_plan(request_, trt, workspace_bytes=1 << 20)
    used |= trt.used
    trt = Bindings(version, engine_answers(version))
    runner = TensorRtRunner(Path(request_.destination), ("x",), torch.device("cpu"), trt)
    assert runner(torch.ones(2, 3)).shape == (2, 3)
    used |= trt.used
    called_by_tensorrt = {name for name in RECORD if name.startswith(("ILogger.log", "ILogger.Severity"))}
    assert used == {name for name in RECORD if "." in name} - called_by_tensorrt


@pytest.mark.parametrize(
    "call",
    [
        lambda trt: trt.Builder(),
        lambda trt: trt.Builder("logger"),
        lambda trt: trt.Builder(trt.ILogger()).create_network("1"),
        lambda trt: trt.Builder(trt.ILogger()).create_network(1, 2),
    ],
)
def test_a_call_that_does_not_fit_is_found(call) -> None:
    with pytest.raises(TypeError, match="takes"):
        call(Bindings("11.4.0.106"))


def test_a_name_that_a_version_lacks_is_found() -> None:
    with pytest.raises(AttributeError, match=r"has no Builder\.build_engine"):
        _ = Bindings("10.3.0").Builder(Bindings("10.3.0").ILogger()).build_engine


def test_what_tensorrt_tells_the_logger_is_the_reason(request_: BuildRequest) -> None:
    loggers = []

    def build(network, config) -> None:
        loggers[0].log(loggers[0].Severity.ERROR, "no tactic fits")  # as `ILogger.log` is documented

    trt = Bindings("10.3.0", {"Builder.__init__": loggers.append, "Builder.build_serialized_network": build})
    with pytest.raises(EngineError, match="built no plan: no tactic fits"):
        build_plan(request_, trt, workspace_bytes=1)
