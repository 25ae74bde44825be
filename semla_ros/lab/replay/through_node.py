"""Feeds the frames of a replay to the real node over DDS, one at a time, and takes its masks as the answer.

The node is `PerceptionNode` in a process of its own. It differs from the one in a vehicle in two respects. Its adapting
path runs in turn with the frames instead of beside them: which frame a background thread gets to see depends on the
machine's speed, and a replay must not. And it tells on a topic of its own what each frame was answered with: topics
have no order between them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from semla_ros.config import SemlaConfig
from semla_ros.errors import EngineError
from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.bags.label_map import raw_mask
from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.lab.processes import Child
from semla_ros.lab.replay.run import ReplayOptions
from semla_ros.lab.replay.runners import NEAREST, Answer, Outcome
from semla_ros.nodes import messages
from semla_ros.nodes.diagnostics_listener import statuses_of
from semla_ros.nodes.outputs import LATCHED_QOS
from semla_ros.nodes.perception import spin
from semla_ros.nodes.perception_node import PerceptionNode
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import AdaptationStep, Frame, Generation, Level, Segmentation, Status
from semla_ros.serving.memory import keep_large_blocks

NODE = "/perception"
TOLD = "answered"  # topic of this replay's node: what a frame was answered with
MASKS = ("mask", "confidence")
START_S = 300.0  # loading a large model from a slow disk takes its time
ANSWER_S = 120.0
QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=4, reliability=ReliabilityPolicy.RELIABLE)


class InlinePipeline(PerceptionPipeline):
    """A pipeline whose adaptation path takes its turn before each frame.

    Attributes:
        tell: Called with each answer as JSON: its frame, its generation's number and nearest adapters, its latencies,
            and what the adaptation path decided where it was shown the frame.
    """

    tell: Callable[[str], None]
    _decided: AdaptationStep | None = None

    def start(self) -> None:
        """There is no background thread."""

    def offer(self, frame: Frame) -> None:
        """Adapt now."""
        self._decided = self.adapt(frame)

    def segment(self, frame: Frame, want_confidence: bool = True) -> Segmentation:
        """Segment, and tell with what."""
        answer = super().segment(frame, want_confidence)
        step, self._decided = self._decided, None
        told = {
            "camera": frame.camera,
            "stamp_ns": frame.stamp_ns,
            "generation": answer.generation.number,
            "latency_ms": dict(answer.latency_ms),
            "nearest": list(self.scene_distances().items())[:NEAREST],
            "step": step and {"action": step.action, "drift": step.drift, "error": step.error,
                              "latency_ms": dict(step.latency_ms)},
        }  # fmt: skip
        self.tell(json.dumps(told))
        return answer


class NodeRunner:
    """Answers the frames of one variant through a node, one after the other; takes the place of `VariantRunner`.

    Args:
        options: How the bag is replayed.
        cameras: Camera names; `[""]` for the only one.
        log: Where the node's output goes.
        resources: Ends the node and leaves the graph where it is closed.

    Attributes:
        dropped: Frames that got no mask of their own; here always 0, as each one is waited for.
        domain: DDS domain of the node.

    Raises:
        SemlaError: The node does not start; the message holds the reason that it gives.
    """

    module = __name__  # the node's process
    answers: tuple[str, ...] = (*MASKS, TOLD)  # what comes for each frame

    def __init__(self, options: ReplayOptions, cameras: Sequence[str], log: Path, resources: ExitStack) -> None:
        self.dropped = 0
        self._cameras = tuple(cameras)
        self._scopes = self._cameras if options.scope == "camera" else ("",)
        self._answers: dict[tuple[str, str], dict[int, Any]] = {
            (what, camera): {} for what in self.answers for camera in cameras
        }
        self._generations: dict[str, Generation] = {}
        self._reports: list[Status] = []
        self.domain = free_domain()
        self._child = self._start_node(options, log, resources)
        self._connect(resources)
        self._wait(self._is_ready, START_S, "it is not ready")

    def run(self, item: ReplayFrame) -> Outcome:
        """Send one frame and wait for its mask.

        Raises:
            SemlaError: The node does not answer.
        """
        frame, camera = item.frame, item.frame.camera
        header = Header(stamp=messages.to_stamp(frame.stamp_ns), frame_id=frame.frame_id)
        began_s = time.perf_counter()
        self._images[camera].publish(messages.image_message(header, frame.image))
        parts = [self._answers[what, camera] for what in self.answers]
        self._wait(
            lambda: all(frame.stamp_ns in part for part in parts) and self._generation(camera, frame.stamp_ns),
            ANSWER_S,
            f"it gave no mask for the frame of camera '{camera}' at {frame.stamp_ns} ns",
        )
        took_ms = 1e3 * (time.perf_counter() - began_s)
        generation = self._generation(camera, frame.stamp_ns)
        mask, confidence, told = (part.pop(frame.stamp_ns) for part in parts)
        segmentation = Segmentation(
            mask=raw_mask(mask),
            confidence=raw_mask(confidence),
            generation=generation,
            stamp_ns=frame.stamp_ns,
            camera=camera,
            frame_id=mask.header.frame_id,
            latency_ms={**told["latency_ms"], "total": took_ms},
        )
        step = told["step"] and AdaptationStep(stamp_ns=frame.stamp_ns, generation=generation, **told["step"])
        nearest = tuple((name, distance) for name, distance in told["nearest"])
        return Outcome.own(Answer(item, segmentation, step, nearest, item.log_ns))

    def reports(self) -> list[Status]:
        """What the node says of its adaptation in its latest report."""
        return [status for status in self._reports if ": adaptation" in status.name]

    def finish(self) -> tuple[Answer, ...]:
        """Nothing waits: each frame was answered."""
        return ()

    def facts(self) -> dict[str, Any]:
        """As `VariantRunner.facts`."""
        return {"dropped": self.dropped}

    def _parameters(self, options: ReplayOptions) -> dict[str, Any]:
        """Of the node."""
        config = options.config
        values: dict[str, Any] = {
            "model": config.model,
            "model_dir": config.model_dir,
            "library": config.library,
            "classes": list(config.classes) or [""],
            "cameras": [name for name in self._cameras if name] or [""],
            "adaptation_scope": options.scope,
            "cv_bridge": "never",
            "watch_library_s": 0.0,
            **asdict(config.inference),
        }
        for camera in self._cameras:  # nothing may be lost on the way
            values[f"qos_overrides.{topic_of(camera, 'image')}.subscription.reliability"] = "reliable"
        return values

    def _start_node(self, options: ReplayOptions, log: Path, resources: ExitStack) -> Child:
        values = self._parameters(options)
        file = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="semla-replay-"))) / "parameters.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}), encoding="utf-8")
        command = [sys.executable, "-m", self.module, "--ros-args", "--params-file", str(file)]
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = isolated_environment(self.domain)
        child = Child("perception node", command, environment, log)
        resources.callback(child.stop)
        for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTRTPS_DEFAULT_PROFILES_FILE", "AMENT_PREFIX_PATH"):
            if name in environment:  # read when this process joins the graph
                os.environ[name] = environment[name]
        return child

    def _connect(self, resources: ExitStack) -> None:
        context = Context()
        rclpy.init(args=[], context=context, domain_id=self.domain)
        resources.callback(context.try_shutdown)
        self._node = node = Node("semla_replay", context=context, use_global_arguments=False)
        resources.callback(node.destroy_node)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(node)
        resources.callback(self._executor.shutdown)
        self._images = {}
        for camera in self._cameras:
            self._images[camera] = node.create_publisher(Image, topic_of(camera, "image"), QOS)
            for what in MASKS:
                store = partial(self._store, what, camera)
                node.create_subscription(Image, NODE + topic_of(camera, what), store, QOS)
        for scope in self._scopes:
            store = partial(self._store_generation, scope)
            node.create_subscription(DiagnosticArray, NODE + topic_of(scope, "adapter_weights"), store, LATCHED_QOS)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._store_reports, 10)
        self._listen_further()

    def _listen_further(self) -> None:
        """Subscribe to what comes with the masks."""
        self._node.create_subscription(String, NODE + topic_of("", TOLD), self._store_told, QOS)

    def _is_ready(self) -> bool:
        """Every publisher here and there has found its counterpart, and the first weights have come."""
        return len(self._generations) == len(self._scopes) and all(
            publisher.get_subscription_count()
            and all(self._node.count_publishers(NODE + topic_of(camera, what)) for what in MASKS)
            for camera, publisher in self._images.items()
        )

    def _wait(self, is_done: Callable[[], Any], seconds: float, what: str) -> None:
        deadline_s = time.monotonic() + seconds
        while not is_done():
            self._executor.spin_once(timeout_sec=0.05)
            self._check_process()
            errors = "; ".join(status.message for status in self._reports if status.level == Level.ERROR)
            if errors and not self._generations:
                raise EngineError(f"the perception node cannot start: {errors}")
            if time.monotonic() > deadline_s:
                why = f"it says: {errors}" if errors else f"its output is in {self._child.log}"
                raise EngineError(f"the perception node did not answer within {seconds:.0f} s: {what}; {why}")

    def _check_process(self) -> None:
        if self._child.status is not None:
            raise EngineError(f"the perception node has ended: {self._child.last_lines(3)}".replace("\n", " | "))

    def _store(self, what: str, camera: str, message: Any, info: dict[str, int]) -> None:
        """Keep an answer.

        Args:
            what: One of `answers`.
            camera: Its camera.
            message: With the header of the image.
            info: When it was sent and received, nanoseconds of the system clock.
        """
        del info
        self._answers[what, camera][messages.stamp_ns(message.header.stamp)] = message

    def _store_told(self, message: String) -> None:
        content = json.loads(message.data)
        self._answers[TOLD, content["camera"]][content["stamp_ns"]] = content

    def _store_generation(self, scope: str, message: DiagnosticArray) -> None:
        self._generations[scope] = Generation.from_statuses(statuses_of(message))

    def _store_reports(self, message: DiagnosticArray) -> None:
        self._reports = statuses_of(message)

    def _generation(self, camera: str, stamp_ns: int) -> Generation | None:
        """What a frame was answered with, once its weights have come."""
        generation = self._generations[camera if camera in self._scopes else ""]
        is_own = generation.number == self._answers[TOLD, camera][stamp_ns]["generation"]
        return generation if is_own else None


def topic_of(camera: str, name: str) -> str:
    """Of one camera; of the only one where its name is empty."""
    return f"/{camera}/{name}" if camera else f"/{name}"


def _make() -> PerceptionNode:
    def load(config: SemlaConfig) -> InlinePipeline:
        pipeline = InlinePipeline.load(config)
        pipeline.tell = lambda text: told.publish(String(data=text))
        return pipeline

    node = PerceptionNode(load=load)
    told = node.create_publisher(String, f"~/{TOLD}", QOS)
    return node


def main() -> int:
    """Run the node for a replay."""
    keep_large_blocks()
    spin(_make)
    return 0


if __name__ == "__main__":
    sys.exit(main())
