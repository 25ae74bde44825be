"""A ROS 2 graph for tests: a node of the test's own, and nodes under test as processes, on a domain of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import GetParameters, ListParameters, SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool

from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.nodes.messages import image_message, to_stamp

HERE = Path(__file__).parent
RELIABLE = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
    "shutdown": Transition.TRANSITION_ACTIVE_SHUTDOWN,
}
SEGMENT = "/dev/shm/fast(?:rtps|dds)_"  # how names of Fast DDS' shared memory begin, until Jazzy and from Kilted on
TIMEOUT_S = 90.0  # for a machine that is busy; nothing waits this long when it works


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Poll until the condition holds, and return its value."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s: {what}")


class NodeProcess:
    """A node under test in a process of its own."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, and wait for nothing."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Interrupt as Ctrl-C does; returns the exit status."""
        if self.is_alive:
            self.send(number)
        return self.wait(f"did not end on {number.name}")

    def wait(self, what: str = "did not end by itself") -> int:
        """The exit status, once it has ended."""
        try:
            return self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(f"{what}:\n{self.output}") from None


class Graph:
    """The test's own node, served by a thread, and the processes started from it."""

    def __init__(self, folder: Path) -> None:
        self.domain = free_domain()
        self.environment = isolated_environment(self.domain) | {"OMP_NUM_THREADS": "1"}
        os.environ.update({key: self.environment[key] for key in self.environment if key.startswith(("ROS_", "FAST"))})
        self._folder = folder
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=self.domain)
        self.node = rclpy.create_node("test_monitor", context=self._context, use_global_arguments=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self.processes: list[NodeProcess] = []
        self._clients: dict[str, Any] = {}

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def start(
        self,
        *command: str,
        namespace: str = "",
        remappings: Mapping[str, str] | None = None,
        params_files: Sequence[Path] = (),
        **parameters: object,
    ) -> NodeProcess:
        """Start `python <command>` with parameters, as text as on a command line."""
        arguments = [sys.executable, *command, "--ros-args"]
        for name, target in (remappings or {}).items():
            arguments += ["-r", f"{name}:={target}"]
        if namespace:
            arguments += ["-r", f"__ns:=/{namespace}"]
        for path in params_files:
            arguments += ["--params-file", str(path)]
        for key, value in parameters.items():
            arguments += ["-p", f"{key}:={value}"]
        process = NodeProcess(arguments, self.environment, self._folder / f"process_{len(self.processes)}.log")
        self.processes.append(process)
        return process

    def collect(self, message_type: Any, topic: str, qos: QoSProfile = RELIABLE) -> list[Any]:
        """A list that grows with each message."""
        received: list[Any] = []
        self.node.create_subscription(message_type, topic, received.append, qos)
        return received

    def unsubscribe(self, subscription: Any) -> None:
        """In the executor's thread, whose loop does not survive a handle that vanishes while it looks at it."""
        wait_for(self._executor.create_task(self.node.destroy_subscription, subscription).done, "end of a subscription")

    def destroy(self, publisher: Any) -> None:
        """Likewise."""
        wait_for(self._executor.create_task(self.node.destroy_publisher, publisher).done, "end of a publisher")

    def call(self, service_type: Any, name: str, request: Any) -> Any:
        """Call a service and return its response."""
        # One client per service: on a busy machine the answer to a client just discovered may be lost.
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.node.create_client(service_type, name)
            assert client.wait_for_service(TIMEOUT_S), f"no service {name}"
            time.sleep(0.2)
        future = client.call_async(request)
        wait_for(future.done, f"answer of {name}")
        return future.result()

    def close(self) -> None:
        for process in self.processes:  # all of them, also when one does not end as it should
            with contextlib.suppress(AssertionError):
                process.stop()
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)


class PerceptionClient:
    """What a test says to a perception node and hears of it."""

    def __init__(self, graph: Graph, namespace: str) -> None:
        self.graph = graph
        self.namespace = namespace
        self.prefix = f"/{namespace}/perception"
        self._statuses: dict[str, DiagnosticStatus] = {}
        self.reports = 0
        graph.node.create_subscription(DiagnosticArray, "/diagnostics", self._hear, RELIABLE)
        self._image = graph.node.create_publisher(Image, f"/{namespace}/image", RELIABLE)
        self._stamp_ns = 1_000_000_000

    def _hear(self, message: DiagnosticArray) -> None:
        if any(status.hardware_id == self.namespace for status in message.status):
            self._statuses = {status.name.split(": ", 1)[1]: status for status in message.status}
            self.reports += 1

    def status(self, name: str) -> DiagnosticStatus | None:
        return self._statuses.get(name)

    def names(self) -> list[str]:
        """Of the statuses in the latest report."""
        return list(self._statuses)

    def values(self, name: str) -> dict[str, str]:
        status = self._statuses.get(name)
        return {item.key: item.value for item in status.values} if status else {}

    def wait_for_state(self, state: str) -> None:
        wait_for(lambda: self.values("node").get("Lifecycle state") == state, f"state {state}: {self._statuses}")

    def wait_for_message(self, name: str, words: str) -> DiagnosticStatus:
        def found() -> DiagnosticStatus | None:
            status = self.status(name)
            return status if status is not None and words in status.message else None

        return wait_for(found, f"'{words}' in diagnostics of {name}; now {self.status(name)}")  # type: ignore[no-any-return]

    def transition(self, name: str) -> bool:
        request = ChangeState.Request(transition=Transition(id=TRANSITIONS[name]))
        return bool(self.graph.call(ChangeState, f"{self.prefix}/change_state", request).success)

    def state(self) -> str:
        return str(self.graph.call(GetState, f"{self.prefix}/get_state", GetState.Request()).current_state.label)

    def set_parameters(self, **values: Any) -> Any:
        """All at once; dots in names are written as double underscores."""
        parameters: list[ParameterMessage] = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()
        ]
        request = SetParametersAtomically.Request(parameters=parameters)
        return self.graph.call(SetParametersAtomically, f"{self.prefix}/set_parameters_atomically", request).result

    def parameter(self, name: str) -> Any:
        request = GetParameters.Request(names=[name])
        message = self.graph.call(GetParameters, f"{self.prefix}/get_parameters", request).values[0]
        return Parameter.from_parameter_msg(ParameterMessage(name=name, value=message)).value

    def switch(self, name: str, is_on: bool) -> Any:
        return self.graph.call(SetBool, f"{self.prefix}/{name}", SetBool.Request(data=is_on))

    def dump(self) -> dict[str, Any]:
        """Every parameter, as `ros2 param dump` asks for them."""
        depth = ListParameters.Request.DEPTH_RECURSIVE
        names = self.graph.call(
            ListParameters, f"{self.prefix}/list_parameters", ListParameters.Request(depth=depth)
        ).result.names
        request = GetParameters.Request(names=names)
        values = self.graph.call(GetParameters, f"{self.prefix}/get_parameters", request).values
        return {name: parameter_value_to_python(value) for name, value in zip(names, values, strict=True)}

    def image(self, value: int = 0, *, size: tuple[int, int] = (6, 8), scene: int = 0, frame_id: str = "cam") -> Image:
        """An rgb8 image of one colour with a stamp that grows."""
        self._stamp_ns += 40_000_000
        pixels = np.full((*size, 3), (value, scene, 0), np.uint8)
        message = image_message(Image().header, pixels)
        message.header.frame_id = frame_id
        message.header.stamp = to_stamp(self._stamp_ns)
        return message

    def send(self, message: Image) -> Image:
        wait_for(lambda: self._image.get_subscription_count() == 1, f"subscription to /{self.namespace}/image")
        self._image.publish(message)
        return message


def start_costless(
    graph: Graph,
    namespace: str,
    remappings: Mapping[str, str] | None = None,
    params_files: Sequence[Path] = (),
    **parameters: object,
) -> NodeProcess:
    """Start the perception node on a model that costs nothing."""
    parameters = {"diagnostics.period_s": 0.1, "diagnostics.hardware_id": namespace} | parameters
    command, how = str(HERE / "costless_node.py"), {"remappings": remappings, "params_files": params_files}
    return graph.start(command, namespace=namespace, **how, **parameters)  # type: ignore[arg-type]
