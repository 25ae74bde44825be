"""The node `scene_camera`: a drive through the procedural world, published as a camera with exact ground truth.

Images are rendered ahead in a thread of their own, so that the rate holds while single frames take longer.
`semla replay BAG --segments /segment` reads a recording of it, as it reads those of `semla record-demo`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String

from semla_ros.config import Checked, Count, Positive, Range, fixed, from_mapping, settings_of
from semla_ros.errors import ConfigError, counted
from semla_ros.lab.demo.demo_bag import TRANSITION, ahead, camera_matrix
from semla_ros.lab.world.cities import city_style
from semla_ros.lab.world.drive import Drive, demo_drive
from semla_ros.lab.world.render import Scene
from semla_ros.nodes import messages
from semla_ros.nodes.parameter_descriptors import descriptor_of
from semla_ros.nodes.rclpy_internals import starting
from semla_ros.serving.memory import keep_large_blocks
from semla_ros.serving.ros_logging import forward_logs, stop_forwarding

# Reliable, so that a recorder misses nothing; whoever asks for best effort gets that.
CAMERA_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
SEGMENT_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# A subscription that is counted here may not have found this publisher yet, nor those behind it each other: what is
# published before that is lost to them.
_SETTLE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class SceneCameraConfig(Checked):
    """What is driven, and how it is filmed."""

    city: str = fixed("boulevard", "One of semla_ros.lab.world.CITIES")
    seed: int = fixed(7, "Layout of the street")
    duration_s: Positive = fixed(90.0, "Length of the drive")
    rate_hz: Positive = fixed(10.0, "Images per second")
    width: Annotated[int, Range(16)] = fixed(256, "Of the images, pixels")
    height: Annotated[int, Range(16)] = fixed(192, "Of the images, pixels")
    frame_id: str = fixed("scene_camera", "tf frame in the headers")
    loop: bool = fixed(False, "Start over at the end")
    wait_for_subscribers: Count = fixed(1, "Subscriptions to image before the drive starts; 0 = start at once")
    look_ahead: Annotated[int, Range(1)] = fixed(20, "Images rendered ahead")

    def __post_init__(self) -> None:
        super().__post_init__()
        city_style(self.city)

    @property
    def frame_count(self) -> int:
        """Images of one drive."""
        return max(1, round(self.duration_s * self.rate_hz))


class SceneCameraNode(Node):
    """Publishes `image`, `ground_truth` and `camera_info` with equal headers, and `segment` where its name changes."""

    def __init__(self, **options: Any) -> None:
        super().__init__("scene_camera", **options)
        self._config = self._read_parameters()
        self._log_handler = forward_logs(self.get_logger())
        self._image = self.create_publisher(Image, "image", CAMERA_QOS)
        self._truth = self.create_publisher(Image, "ground_truth", CAMERA_QOS)
        self._camera_info = self.create_publisher(CameraInfo, "camera_info", CAMERA_QOS)
        self._segment = self.create_publisher(String, "segment", SEGMENT_QOS)
        self._info = camera_info(self._config)
        self._sent, self._told = 0, ""
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._film, name="semla-camera")
        self._thread.start()

    def _read_parameters(self) -> SceneCameraConfig:
        """Declare and check the parameters; raises `ConfigError`."""
        given = {
            name: parameter.value
            for name, parameter in self._parameter_overrides.items()
            if not self.has_parameter(name)
        }
        config: SceneCameraConfig = from_mapping(SceneCameraConfig, given)
        for name, setting in settings_of(SceneCameraConfig).items():
            self.declare_parameter(name, getattr(config, name), descriptor_of(setting), ignore_override=True)
        return config

    def _film(self) -> None:
        config = self._config
        drive = demo_drive(config.seed, city=config.city, duration_s=config.duration_s)
        try:
            is_first = True
            while is_first or (config.loop and not self._is_stopping.is_set()):
                with ThreadPoolExecutor(1, "semla-render") as pool, closing(self._frames(pool, drive)) as frames:
                    self._drive_once(frames, wait=is_first)
                is_first = False
            self.get_logger().info(f"the drive is over: {counted(self._sent, 'image')}")
        except Exception as error:
            if self.context.ok():
                self.get_logger().error(f"the drive ended: {type(error).__name__}: {error}")

    def _frames(self, pool: ThreadPoolExecutor, drive: Drive) -> Generator[tuple[str, Scene]]:
        """What the drive calls each image, and the image; the first ones are rendered when the first is asked for."""
        config = self._config

        def render(time_s: float) -> tuple[str, Scene]:
            return drive.segment_name(time_s) or TRANSITION, drive.render(time_s, config.width, config.height)

        return ahead(pool, render, (index / config.rate_hz for index in range(config.frame_count)), config.look_ahead)

    def _drive_once(self, frames: Iterator[tuple[str, Scene]], *, wait: bool) -> None:
        frame = next(frames, None)
        if wait:
            self._wait_for_subscribers()
        period_s, due_s, late = 1.0 / self._config.rate_hz, time.monotonic(), 0
        while frame is not None:
            delay_s = due_s - time.monotonic()
            if delay_s < -period_s:  # no burst to catch up: a real camera has none either
                late += 1
                due_s = time.monotonic()
            if self._is_stopping.wait(max(0.0, delay_s)):
                break
            self._publish(*frame)
            due_s += period_s
            frame = next(frames, None)
        if late:
            self.get_logger().warning(
                f"{counted(late, 'image')} came late: fewer than {self._config.rate_hz:g} per second were rendered; "
                "lower rate_hz"
            )

    def _wait_for_subscribers(self) -> None:
        needed, counted_s = self._config.wait_for_subscribers, time.monotonic()
        if self._image.get_subscription_count() < needed:
            self.get_logger().info(f"waiting for {counted(needed, 'subscription')} to {self._image.topic_name}")
        while needed and not self._is_stopping.wait(0.05):
            if self._image.get_subscription_count() < needed:
                counted_s = time.monotonic()
            elif time.monotonic() - counted_s >= _SETTLE_S:
                return

    def _publish(self, segment: str, scene: Scene) -> None:
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self._config.frame_id)
        if segment != self._told:  # before the image that it names
            self._segment.publish(String(data=segment))
            self._told = segment
        self._truth.publish(messages.image_message(header, scene.mask))
        self._info.header = header
        self._camera_info.publish(self._info)
        self._image.publish(messages.image_message(header, scene.image))
        self._sent += 1

    def close(self) -> None:
        """Stop filming and join the threads."""
        self._is_stopping.set()
        self._thread.join()
        stop_forwarding(self._log_handler)


def camera_info(config: SceneCameraConfig) -> CameraInfo:
    """Calibration of the drive's camera, which has no distortion."""
    info = CameraInfo(width=config.width, height=config.height, distortion_model="plumb_bob", d=[0.0] * 5)
    matrix = camera_matrix(config.city, config.width, config.height)
    info.k, info.r = matrix.reshape(-1), np.eye(3).reshape(-1)
    info.p = np.hstack([matrix, np.zeros((3, 1))]).reshape(-1)
    return info


def _help() -> str:
    settings = settings_of(SceneCameraConfig)
    width = max(map(len, settings))
    lines = [f"  {name:{width}}  {setting.text}; default: {setting.default}" for name, setting in settings.items()]
    use = "usage: scene_camera [--help] [--ros-args -p seed:=3 -r image:=/camera/image_raw ...]"
    return "\n".join([use, "", str(__doc__), "Parameters:", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node, or say what it is; exit status 2 with one clear line for a wrong parameter, or what ROS refuses."""
    given = sys.argv if arguments is None else list(arguments)
    if {"-h", "--help"} & {*given}:
        print(_help())
        return 0
    keep_large_blocks()
    try:
        with starting():
            rclpy.init(args=given)
            node = SceneCameraNode()
    except ConfigError as error:
        print(f"scene_camera: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        if node.context.ok():  # else the signal came while a callback was publishing
            raise
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
