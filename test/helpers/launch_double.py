"""A double of `launch` and `launch_ros` that runs our launch files where no ROS is installed: they are on no PyPI.

    python launch_double.py FILE [name:=value ...] [--show-args]

It knows the actions that our files and the vehicle's around them in the tests use, and starts the processes with the
commands and environments that launch would. test/launch compares what both start, where the real one is installed.
"""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class Action:
    """What happens when a description is run."""

    def execute(self, context: LaunchContext) -> Iterable[Action] | None:
        raise NotImplementedError


class LaunchContext:
    """Configurations by name, and the processes that run."""

    def __init__(self) -> None:
        self.launch_configurations: dict[str, Any] = {}
        self.environment = os.environ
        self.handlers: list[OnProcessExit] = []
        self.processes: list[threading.Thread] = []
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.is_ending = threading.Event()
        self.lock = threading.Lock()

    def run(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self.run(action.execute(self) or ())

    def end(self) -> None:
        self.is_ending.set()
        with self.lock:
            for process in self.running.values():
                process.send_signal(signal.SIGINT)


class LaunchDescription(Action):
    def __init__(self, entities: Iterable[Action]) -> None:
        self.entities = list(entities)

    def execute(self, context: LaunchContext) -> Iterable[Action]:
        return self.entities


class LaunchConfiguration:
    def __init__(self, name: str) -> None:
        self.name = name

    def perform(self, context: LaunchContext) -> str:
        return str(context.launch_configurations[self.name])


def text_of(value: Any, context: LaunchContext) -> str:
    return value.perform(context) if hasattr(value, "perform") else str(value)


class DeclareLaunchArgument(Action):
    def __init__(
        self,
        name: str,
        *,
        default_value: str | None = None,
        description: str = "",
        choices: Sequence[str] | None = None,
    ) -> None:
        self.name, self.default, self.description, self.choices = name, default_value, description, choices

    def execute(self, context: LaunchContext) -> None:
        if self.default is None and self.name not in context.launch_configurations:
            raise RuntimeError(f"Required launch argument '{self.name}' was not provided.")
        value = context.launch_configurations.setdefault(self.name, self.default)
        if self.choices is not None and value not in self.choices:
            raise RuntimeError(f'Argument "{self.name}" provided value "{value}" is not valid: {self.choices}')


class OpaqueFunction(Action):
    def __init__(self, *, function: Callable[[LaunchContext], Iterable[Action] | None]) -> None:
        self.function = function

    def execute(self, context: LaunchContext) -> Iterable[Action] | None:
        return self.function(context)


class PythonLaunchDescriptionSource:
    def __init__(self, path: str) -> None:
        self.path = path


class IncludeLaunchDescription(Action):
    def __init__(self, source: Any, *, launch_arguments: Iterable[tuple[str, Any]] = ()) -> None:
        self.source, self.launch_arguments = source, list(launch_arguments)

    def execute(self, context: LaunchContext) -> Iterable[Action]:
        given = {name: text_of(value, context) for name, value in self.launch_arguments}
        context.launch_configurations.update(given)
        return [runpy.run_path(self.source.path)["generate_launch_description"]()]


class LogInfo(Action):
    def __init__(self, *, msg: str) -> None:
        self.msg = msg

    def execute(self, context: LaunchContext) -> None:
        print(f"[INFO] [launch.user]: {text_of(self.msg, context)}", flush=True)


class SetEnvironmentVariable(Action):
    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value

    def execute(self, context: LaunchContext) -> None:
        context.environment[self.name] = self.value


class ExecuteProcess(Action):
    numbers = itertools.count(1)

    def __init__(
        self,
        *,
        cmd: Sequence[str],
        name: str | None = None,
        output: str = "log",
        additional_env: Mapping[str, str] | None = None,
        respawn: bool = False,
        respawn_delay: float = 0.0,
        emulate_tty: bool = False,
    ) -> None:
        self.cmd, self.name, self.additional_env = list(cmd), name, dict(additional_env or {})
        self.respawn, self.respawn_delay = respawn, respawn_delay

    def execute(self, context: LaunchContext) -> None:
        label = f"{self.name or Path(self.cmd[0]).name}-{next(self.numbers)}"
        environment = {**context.environment, **self.additional_env}
        thread = threading.Thread(target=self._run, args=(context, label, list(self.cmd), environment))
        context.processes.append(thread)
        thread.start()

    def _run(self, context: LaunchContext, label: str, command: list[str], environment: dict[str, str]) -> None:
        while not context.is_ending.is_set():
            with context.lock:
                process = subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
                context.running[label] = process
            print(f"[INFO] [{label}]: process started with pid [{process.pid}]", flush=True)
            assert process.stdout is not None
            for line in process.stdout:
                print(f"[{label}] {line}", end="", flush=True)
            status = process.wait()
            with context.lock:
                del context.running[label]
            print(f"[INFO] [{label}]: process has ended, status {status}", flush=True)
            for handler in context.handlers:
                if handler.target_action is self and not context.is_ending.is_set():
                    context.run(handler.on_exit)
            if not self.respawn or context.is_ending.wait(self.respawn_delay):
                break


class Node(ExecuteProcess):
    def __init__(
        self,
        *,
        package: str,
        executable: str,
        name: str,
        namespace: str | None = None,
        parameters: Sequence[Any] = (),
        remappings: Sequence[tuple[str, str]] = (),
        arguments: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(cmd=[], name=executable, **options)
        self.package, self.executable, self.arguments = package, executable, arguments
        self.node_name, self.namespace = name, namespace
        self.parameters, self.remappings = parameters, remappings

    def execute(self, context: LaunchContext) -> None:
        prefixes = context.environment["AMENT_PREFIX_PATH"].split(os.pathsep)
        paths = [Path(prefix) / "lib" / self.package / self.executable for prefix in prefixes]
        self.cmd = [str(next(path for path in paths if path.exists())), *self.arguments, "--ros-args"]
        self.cmd += ["-r", f"__node:={self.node_name}"]
        section, pushed, own = "/**", context.launch_configurations.get("ros_namespace"), self.namespace
        if own is not None or pushed is not None:
            namespace = own if own and own.startswith("/") else f"{pushed or ''}/{own or ''}"
            namespace = f"/{namespace.strip('/')}"
            self.cmd += ["-r", f"__ns:={namespace}"]
            section = f"{namespace.rstrip('/')}/{self.node_name}"
        for key, value in context.launch_configurations.get("global_params", ()):
            self.cmd += ["-p", f"{key}:={value}"]
        for item in self.parameters:
            self.cmd += ["--params-file", item if isinstance(item, str) else _file_of(section, item)]
        for source, target in self.remappings:
            self.cmd += ["-r", f"{source}:={target}"]
        super().execute(context)


def _file_of(section: str, parameters: Mapping[str, Any]) -> str:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in parameters.items()}
    with tempfile.NamedTemporaryFile("w", prefix="launch_params_", delete=False) as file:
        yaml.dump({section: {"ros__parameters": values}}, file, default_flow_style=False)
    return file.name


class SetParameter(Action):
    def __init__(self, name: str, value: Any) -> None:
        self.item = name, value

    def execute(self, context: LaunchContext) -> None:
        context.launch_configurations.setdefault("global_params", []).append(self.item)


class PushRosNamespace(Action):
    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def execute(self, context: LaunchContext) -> None:
        present = context.launch_configurations.get("ros_namespace", "")
        context.launch_configurations["ros_namespace"] = f"{present}/{self.namespace.strip('/')}"


class Shutdown:
    def __init__(self, reason: str = "") -> None:
        self.reason = reason


class EmitEvent(Action):
    def __init__(self, *, event: Shutdown) -> None:
        self.event = event

    def execute(self, context: LaunchContext) -> None:
        print(f"[INFO] [launch]: shutdown: {self.event.reason}", flush=True)
        context.end()


class OnProcessExit:
    def __init__(self, *, target_action: Action, on_exit: Sequence[Action]) -> None:
        self.target_action, self.on_exit = target_action, on_exit


class RegisterEventHandler(Action):
    def __init__(self, handler: OnProcessExit) -> None:
        self.handler = handler

    def execute(self, context: LaunchContext) -> None:
        context.handlers.append(self.handler)


MODULES: dict[str, tuple[type, ...]] = {
    "launch": (Action, LaunchContext, LaunchDescription),
    "launch.actions": (
        DeclareLaunchArgument, EmitEvent, ExecuteProcess, IncludeLaunchDescription, LogInfo, OpaqueFunction,
        RegisterEventHandler, SetEnvironmentVariable,
    ),
    "launch.event_handlers": (OnProcessExit,),
    "launch.events": (Shutdown,),
    "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
    "launch.substitutions": (LaunchConfiguration,),
    "launch_ros": (),
    "launch_ros.actions": (Node, PushRosNamespace, SetParameter),
}  # fmt: skip


def put_in_place() -> None:
    """Let `import launch` and `import launch_ros` find what stands here."""
    for name, classes in MODULES.items():
        module = sys.modules[name] = types.ModuleType(name)
        for item in classes:
            setattr(module, item.__name__, item)
    sys.modules["launch_ros.actions"].LifecycleNode = Node  # type: ignore[attr-defined]  # starts like any other


def main(arguments: Sequence[str]) -> int:
    """Run a launch file until its processes have ended, or SIGINT ends them."""
    put_in_place()
    file, *rest = arguments
    context = LaunchContext()
    given = [item.split(":=", 1) for item in rest if ":=" in item]
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=map(tuple, given))  # type: ignore[arg-type]
    if "--show-args" in rest:
        for entity in runpy.run_path(file)["generate_launch_description"]().entities:
            if isinstance(entity, DeclareLaunchArgument):
                print(f"    '{entity.name}':\n        {entity.description}\n        (default: {entity.default!r})\n")
        return 0
    signal.signal(signal.SIGINT, lambda *_: context.end())
    signal.signal(signal.SIGTERM, lambda *_: context.end())
    try:
        context.run([include])
    except Exception as error:
        print(f"[ERROR] [launch]: Caught exception in launch: {error}", flush=True)
        context.end()
        return 1
    while any(thread.is_alive() for thread in context.processes):
        time.sleep(0.02)  # joining would let no signal through
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
