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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from semla_ros.errors import EngineError, SemlaError
from semla_ros.lab.bags.frames import ReplayFrame
from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.lab.processes import Child
from semla_ros.lab.replay.run import ReplayOptions
from semla_ros.lab.replay.runners import NEAREST, Answer, Outcome, ReplayVariant
from semla_ros.nodes import messages
from semla_ros.nodes.outputs import LATCHED_QOS
from semla_ros.nodes.perception_node import PerceptionNode, spin
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import AdaptationStep, Frame, Generation, Level, Segmentation, Status
from semla_ros.serving.memory import keep_large_blocks

NODE = "/perception"
TOLD = "answered"  # topic of this replay's node: what a frame was answered with
ANSWERS = ("mask", "confidence", TOLD)
START_S = 300.0  # loading a large model from a slow disk takes its time
ANSWER_S = 120.0
_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=4, reliability=ReliabilityPolicy.RELIABLE)


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
    """Answers the frames of one variant through a node; takes the place of `VariantRunner`.

    Args:
        options: How the bag is replayed.
        cameras: Camera names; `[""]` for the only one.
        log: Where the node's output goes.

    Attributes:
        dropped: Always 0: each frame is waited for.

    Raises:
        SemlaError: The node does not start; the message holds the reason that it gives.
    """

    def __init__(self, options: ReplayOptions, cameras: Sequence[str], log: Path) -> None:
        self.dropped = 0
        self._cameras = tuple(cameras)
        self._settings = tempfile.TemporaryDirectory(prefix="semla-replay-")
        self._child: Child | None = None
        self._context = Context()
        self._answers: dict[tuple[str, str], dict[int, Any]] = {
            (what, camera): {} for what in ANSWERS for camera in cameras
        }
        self._generations: dict[str, Generation] = {}
        self._reports: list[Status] = []
        self._class_names: tuple[str, ...] = ()
        self._vocabulary_version = 0
        self._last_error = ""
        try:
            self._start_node(options, log)
            self._connect(options)
            self._wait(self._is_ready, START_S, "it is not ready")
        except BaseException:
            self.close()
            raise

    def run(self, item: ReplayFrame) -> Outcome:
        """Send one frame and wait for its mask.

        Raises:
            SemlaError: The node does not answer.
        """
        frame, camera = item.frame, item.frame.camera
        header = Header(stamp=messages.to_stamp(frame.stamp_ns), frame_id=frame.frame_id)
        began_s = time.perf_counter()
        self._images[camera].publish(messages.image_message(header, frame.image))
        parts = [self._answers[what, camera] for what in ANSWERS]
        self._wait(
            lambda: all(frame.stamp_ns in part for part in parts) and self._generation(camera, frame.stamp_ns),
            ANSWER_S,
            f"it gave no mask for the frame of camera '{camera}' at {frame.stamp_ns} ns",
        )
        took_ms = 1e3 * (time.perf_counter() - began_s)
        generation = self._generation(camera, frame.stamp_ns)
        mask, confidence, told = (part.pop(frame.stamp_ns) for part in parts)
        segmentation = Segmentation(
            mask=_pixels(mask),
            confidence=_pixels(confidence),
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
        """The latest report of the node on its adaptation."""
        return [status for status in self._reports if ": adaptation" in status.name]

    def finish(self) -> tuple[Answer, ...]:
        """Nothing waits: each frame was answered."""
        return ()

    def close(self) -> None:
        """End the node and leave the graph."""
        if self._context.ok():
            if hasattr(self, "_executor"):
                self._executor.shutdown()
                self._node.destroy_node()
            self._context.try_shutdown()
        if self._child is not None:
            self._child.stop()
        self._settings.cleanup()

    def _start_node(self, options: ReplayOptions, log: Path) -> None:
        self._domain = free_domain()
        self._child_log = log
        config = options.config
        values: dict[str, Any] = {
            "model": config.model,
            "model_dir": config.model_dir,
            "library": config.library,
            "classes": list(config.classes) or [""],
            "cameras": [name for name in self._cameras if name] or [""],
            "adaptation_scope": options.scope,
            "device": config.inference.device,
            "engine": config.inference.engine,
            "precision": config.inference.precision,
            "threads": config.inference.threads,
            "cv_bridge": "never",
            "watch_library_s": 0.0,
        }
        if config.inference.inference != "whole":
            values["inference"] = config.inference.inference
        for camera in self._cameras:  # nothing may be lost on the way
            topic = f"/{camera}/image" if camera else "/image"
            values[f"qos_overrides.{topic}.subscription.reliability"] = "reliable"
        file = Path(self._settings.name) / "parameters.yaml"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}), encoding="utf-8")
        command = [sys.executable, "-m", __name__, "--ros-args", "--params-file", str(file)]
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = isolated_environment(self._domain)
        self._child = Child("perception node", command, environment, log)
        for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTRTPS_DEFAULT_PROFILES_FILE", "AMENT_PREFIX_PATH"):
            if name in environment:  # read when this process joins the graph
                os.environ[name] = environment[name]

    def _connect(self, options: ReplayOptions) -> None:
        rclpy.init(args=[], context=self._context, domain_id=self._domain)
        self._node = node = Node("semla_replay", context=self._context, use_global_arguments=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(node)
        self._images = {}
        for camera in self._cameras:
            prefix, private = (f"{camera}/", f"{NODE}/{camera}") if camera else ("", NODE)
            self._images[camera] = node.create_publisher(Image, f"/{prefix}image", _QOS)
            for what in ("mask", "confidence"):
                node.create_subscription(Image, f"{private}/{what}", self._store(self._answers[what, camera]), _QOS)
        node.create_subscription(String, f"{NODE}/{TOLD}", self._store_told, _QOS)
        for scope in self._cameras if options.scope == "camera" else ("",):
            base = f"{NODE}/{scope}" if scope else NODE
            node.create_subscription(
                DiagnosticArray, f"{base}/adapter_weights", self._store_generation(scope), LATCHED_QOS
            )
            node.create_subscription(String, f"{base}/labels", self._store_labels, LATCHED_QOS)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._look_for_errors, 10)

    def _is_ready(self) -> bool:
        """Every publisher here and there has found its counterpart, and the labels have come."""
        return bool(self._class_names) and all(
            publisher.get_subscription_count()
            and all(
                self._node.count_publishers(f"{NODE}/{camera}/{what}" if camera else f"{NODE}/{what}")
                for what in ("mask", "confidence")
            )
            for camera, publisher in self._images.items()
        )

    def _wait(self, is_done: Callable[[], bool], seconds: float, what: str) -> None:
        deadline_s = time.monotonic() + seconds
        while not is_done():
            self._executor.spin_once(timeout_sec=0.05)
            if self._child is not None and self._child.status is not None:
                raise EngineError(f"the perception node has ended: {self._child.last_lines(3)}".replace("\n", " | "))
            if self._last_error and not self._class_names:
                raise EngineError(f"the perception node cannot start: {self._last_error}")
            if time.monotonic() > deadline_s:
                why = f"; it says: {self._last_error}" if self._last_error else f"; its output is in {self._child_log}"
                raise EngineError(f"the perception node did not answer within {seconds:.0f} s: {what}{why}")

    def _store(self, answers: dict[int, Any]) -> Callable[[Image], None]:
        def store(message: Image) -> None:
            answers[messages.stamp_ns(message.header.stamp)] = message

        return store

    def _store_told(self, message: String) -> None:
        content = json.loads(message.data)
        self._answers[TOLD, content.pop("camera")][content.pop("stamp_ns")] = content

    def _store_generation(self, scope: str) -> Callable[[DiagnosticArray], None]:
        def store(message: DiagnosticArray) -> None:
            self._generations[scope] = Generation.from_statuses(messages.statuses_of(message))

        return store

    def _store_labels(self, message: String) -> None:
        content = json.loads(message.data)
        self._class_names = tuple(item["name"] for item in content["classes"])
        self._vocabulary_version = int(content["version"])

    def _look_for_errors(self, message: DiagnosticArray) -> None:
        self._reports = messages.statuses_of(message)
        self._last_error = "; ".join(status.message for status in self._reports if status.level == Level.ERROR)

    def _generation(self, camera: str, stamp_ns: int) -> Generation | None:
        """What a frame was answered with, once its weights have come."""
        generation = self._generations.get(camera) or self._generations.get("")
        if generation is None or generation.number != self._answers[TOLD, camera][stamp_ns]["generation"]:
            return None
        return replace(generation, class_names=self._class_names, vocabulary_version=self._vocabulary_version)


def make_runner(
    options: ReplayOptions, out: Path
) -> Callable[[ReplayVariant, Sequence[str], ExitStack], NodeRunner | None]:
    """What `Replay` needs: variants that follow the scene go through the node, the others stay in this process.

    Raises:
        SemlaError: No variant follows the scene throughout.
    """
    if not any(variant.kind == "semla" for variant in options.compare):
        raise SemlaError("--through-node needs the variant 'semla': it is what the node does")

    def make(variant: ReplayVariant, cameras: Sequence[str], resources: ExitStack) -> NodeRunner | None:
        if variant.kind != "semla":
            return None
        runner = NodeRunner(options, cameras, out / "node.log")
        resources.callback(runner.close)
        return runner

    return make


def _pixels(message: Image) -> Any:
    """(H, W) of a mono8 or mono16 message of the node, which has no padding."""
    dtype = np.uint8 if message.encoding == "mono8" else np.uint16
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width)


def main() -> int:
    """Run the node for a replay."""
    keep_large_blocks()
    rclpy.init()

    def load(config: SemlaConfig) -> InlinePipeline:
        pipeline = InlinePipeline.load(config)
        pipeline.tell = lambda text: told.publish(String(data=text))
        return pipeline

    node = PerceptionNode(load=load)
    told = node.create_publisher(String, f"~/{TOLD}", _QOS)
    spin(node)
    return 0


if __name__ == "__main__":
    sys.exit(main())
