"""Building engines: what is asked of a builder, one at a time in the background, or all at once for provisioning."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from semla_ros.engines.cache import EngineCache, EngineKey
from semla_ros.engines.component_engine import Runner
from semla_ros.engines.components import FixedComponent
from semla_ros.engines.export import EXPORT_REVISION, exported
from semla_ros.engines.gates import first_line
from semla_ros.errors import EngineError

Report = Callable[[float, str], None]  # share done 0..1, what is being done
_WORKER = ("-m", "semla_ros.engines.tensorrt.builder")
_OPTIMISED_FOR_MAPS = 16  # class maps that the decoder is tuned for, where it takes so many


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """One engine to build.

    Attributes:
        graph: ONNX file, its types as they shall run.
        destination: The plan is written here.
        timing_cache: Kept from build to build; may not exist yet.
        profiles: Input name -> smallest, usual and largest shape; inputs of a fixed shape are not named.
        device_index: GPU to build on and for, as CUDA counts them.
    """

    graph: Path
    destination: Path
    timing_cache: Path
    profiles: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    device_index: int = 0

    def as_json(self) -> str:
        """For a builder in another process."""
        paths = {name: str(getattr(self, name)) for name in ("graph", "destination", "timing_cache")}
        rest = {"profiles": self.profiles, "device_index": self.device_index}
        return json.dumps({**paths, **rest})

    @classmethod
    def from_json(cls, text: str) -> BuildRequest:
        """The inverse of `as_json`."""
        values = json.loads(text)
        paths = {name: Path(values[name]) for name in ("graph", "destination", "timing_cache")}
        profiles = {name: _three_shapes(shapes) for name, shapes in values["profiles"].items()}
        return cls(**paths, profiles=profiles, device_index=values["device_index"])


def _three_shapes(shapes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    smallest, usual, largest = map(tuple, shapes)
    return smallest, usual, largest


class Builder(Protocol):
    """Makes plans."""

    def build(self, request: BuildRequest, report: Report) -> None:
        """Write the plan that is asked for.

        Raises:
            EngineError: It could not be built, or the builder was stopped; one line says why.
        """
        ...

    def stop(self) -> None:
        """End the build in progress, from another thread; builds that are asked for later are refused."""
        ...


class Toolkit(Protocol):
    """A runtime that builds plans and runs them on one device: TensorRT, or a stand-in.

    Attributes:
        version: Its version; plans of another one are not loaded.
        device: Name of the GPU.
        device_index: Which GPU of this machine that is, as CUDA counts them.
        builder: Makes plans.
    """

    version: str
    device: str
    device_index: int
    builder: Builder

    def load(self, path: Path, input_names: Sequence[str]) -> Runner:
        """A plan, ready to run.

        Args:
            path: The plan.
            input_names: Names of its inputs, in the order in which the runner is given them.

        Raises:
            EngineError: The plan was made by another version or for another device or component, or is damaged.
        """
        ...


class SubprocessBuilder:
    """Builds in a process of its own.

    A build needs memory that a small device may not have and minutes of GPU and CPU time, and must not disturb a CUDA
    graph that is being captured: in its own process it can fail, or be ended, without the node.

    Args:
        command: The program; it reads a request, which is one line, and writes one JSON object per line. It has to end
            when its input does, as that of a parent that dies.
        grace_s: From asking the program to end until it is killed.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, *_WORKER), *, grace_s: float = 5.0) -> None:
        self._command = list(command)
        self._grace_s = grace_s
        self._lock = threading.Lock()  # `stop` sees a process that is starting, or the start sees the stop
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def build(self, request: BuildRequest, report: Report) -> None:
        """See `Builder.build`."""
        process = self._start()
        with process:
            try:
                self._hand_over(process, request)
                errors = _Drain(process.stderr)
                failure = _follow(process, report)
                status = process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                self._process = None
        if failure or status:
            raise EngineError(failure or f"the builder ended with status {status} ({errors.last_line()})")

    def stop(self) -> None:
        """See `Builder.stop`; returns when the process has ended."""
        with self._lock:
            self._is_stopped = True
            process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(self._grace_s)
        except subprocess.TimeoutExpired:  # it hangs in a driver, or holds the signal back
            process.kill()

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        with self._lock:
            if self._is_stopped:
                raise EngineError("the builder was stopped")
            try:
                self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
            except OSError as error:
                raise EngineError(f"the builder cannot be started ({error})") from None
            return self._process

    @staticmethod
    def _hand_over(process: subprocess.Popen[str], request: BuildRequest) -> None:
        """Write the request; the pipe stays open, as its end tells the program that nobody waits for the plan."""
        assert process.stdin is not None
        try:
            process.stdin.write(f"{request.as_json()}\n")
            process.stdin.flush()
        except BrokenPipeError:  # it ended at once; its exit status and last line tell why
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _follow(process: subprocess.Popen[str], report: Report) -> str:
    """Pass progress on until the program ends; the failure that it tells, or an empty text."""
    assert process.stdout is not None
    failure = ""
    for line in process.stdout:
        message = _message(line)
        if "progress" in message:
            report(float(message["progress"]), str(message.get("phase", "")))
        failure = str(message.get("error", failure))
    return failure


class _Drain:
    """Reads a pipe to its end, so that its writer never waits; keeps the last line."""

    def __init__(self, pipe: Any) -> None:
        self._last = ""
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            self._last = line.strip() or self._last

    def last_line(self) -> str:
        self._thread.join(timeout=1.0)
        return self._last or "it said nothing"


def _message(line: str) -> dict[str, Any]:
    """One line of the builder; what is not a JSON object is something a library printed."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True, kw_only=True, eq=False)
class BuildJob:
    """A component whose plan is missing.

    Attributes:
        component: What the plan is for.
        key: Its place in the cache.
        graph: The exported component.
        device_index: See `BuildRequest`.
    """

    component: FixedComponent
    key: EngineKey
    graph: Path
    device_index: int = 0

    def run(self, builder: Builder, cache: EngineCache, report: Report) -> Path:
        """Build into the cache.

        Raises:
            EngineError: It could not be built or stored.
        """

        def write(path: Path) -> None:
            request = BuildRequest(
                graph=self.graph,
                destination=path,
                timing_cache=cache.timing_cache(self.key.runtime_version, self.key.device),
                profiles=profiles_of(self.component),
                device_index=self.device_index,
            )
            builder.build(request, report)
            if not path.is_file() or not path.stat().st_size:
                raise EngineError("the builder reported success but wrote no plan")

        return cache.store(self.key, write)


def profiles_of(component: FixedComponent) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, usual and largest shape of the input whose leading axis varies."""
    rest = tuple(component.inputs[0].shape[1:])
    usual = min(_OPTIMISED_FOR_MAPS, component.max_batch) if component.name == "decoder" else 1
    return {component.input_names[0]: ((1, *rest), (usual, *rest), (component.max_batch, *rest))}


def plan_key(component: FixedComponent, toolkit: Toolkit, precision: str) -> EngineKey:
    """Cache key of a component's plan."""
    return EngineKey(
        component=component.name,
        model_digest=component.digest,
        runtime="tensorrt",
        runtime_version=toolkit.version,
        device=toolkit.device,
        precision=precision,
        shapes=component.shapes(),
        export_revision=str(EXPORT_REVISION),
    )


def make_job(component: FixedComponent, toolkit: Toolkit, cache: EngineCache, precision: str) -> BuildJob:
    """Export a component, which must not be mounted, for a build.

    Raises:
        EngineError: It cannot be exported or stored.
    """
    graph = exported(component, cache, precision)
    key = plan_key(component, toolkit, precision)
    return BuildJob(
        component=component,
        key=key,
        graph=graph,
        device_index=toolkit.device_index,
    )


@dataclass
class Finished:
    """A job that ended: with a plan, or with the reason why not."""

    job: BuildJob
    path: Path | None
    reason: str = ""


@dataclass
class BackgroundBuild:
    """Builds one job after the other in a thread, while torch serves.

    Attributes:
        jobs: What to build.
        builder: Makes the plans.
        cache: Takes them.
    """

    jobs: Sequence[BuildJob]
    builder: Builder
    cache: EngineCache
    _finished: list[Finished] = field(default_factory=list)
    _state: str = ""
    _is_stopped: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="semla-engine-build", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether there is something left to build."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def state(self) -> str:
        """What is being built and how far it is, for people; empty at the end."""
        return self._state

    def collect(self) -> list[Finished]:
        """Jobs that ended since the last call."""
        finished = []
        while self._finished:
            finished.append(self._finished.pop(0))
        return finished

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; whether it was reached."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.is_running

    def stop(self) -> None:
        """Build nothing more; the build in progress is ended."""
        self._is_stopped = True
        self.builder.stop()
        self.wait(10.0)

    def _run(self) -> None:
        for number, job in enumerate(self.jobs, start=1):
            if self._is_stopped:
                break
            start = f"building {job.component.name} ({number} of {len(self.jobs)})"
            self._state = start

            def report(share: float, phase: str, start: str = start) -> None:
                self._state = f"{start}: {share:.0%} {phase}".rstrip()

            try:
                self._finished.append(Finished(job, job.run(self.builder, self.cache, report)))
            except Exception as error:  # a builder can fail in any way, and torch goes on
                if not self._is_stopped:
                    self._finished.append(Finished(job, None, f"{job.component.name}: {first_line(error)}"))
        self._state = ""


def provision(
    components: Sequence[FixedComponent],
    toolkit: Toolkit,
    cache: EngineCache,
    *,
    precision: str = "fp16",
    report: Callable[[str, float, str], None] = lambda _name, _share, _phase: None,
) -> dict[str, str]:
    """Build what is missing or cannot be loaded, and serve nothing.

    Done once for a device, so that its nodes start with engines ready.

    Args:
        components: What to build plans for.
        toolkit: Builds them.
        cache: Takes them.
        precision: "fp16" or "fp32".
        report: Gets component, share done and phase.

    Returns:
        Component -> "built", "present", or why it could not be built.
    """
    outcome = {}
    for component in components:
        name, key = component.name, plan_key(component, toolkit, precision)
        path = cache.find(key)
        if path is not None and _can_load(toolkit, component, path):
            outcome[name] = "present"
            continue
        try:
            report(name, 0.0, "export")
            cache.retry(key)
            job = make_job(component, toolkit, cache, precision)
            job.run(toolkit.builder, cache, lambda share, phase, name=name: report(name, share, phase))  # type: ignore[misc]
            outcome[name] = "built"
        except EngineError as error:
            outcome[name] = str(error)
    return outcome


def _can_load(toolkit: Toolkit, component: FixedComponent, path: Path) -> bool:
    try:
        toolkit.load(path, component.input_names).close()
    except Exception:  # the runtime has no error family of its own; whatever it was, a new plan is the remedy
        return False
    return True
