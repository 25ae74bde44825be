"""The node `scene_camera`: a drive through the procedural world, published as a camera with exact ground truth.

Images are rendered ahead in a thread of their own, so that the rate holds while single frames take longer.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String

from semla_ros.config import Checked, Count, Positive, Range, fixed, from_mapping, settings_of
from semla_ros.errors import ConfigError, SemlaError
from semla_ros.lab.world.cities import city_style
from semla_ros.lab.world.drive import Drive, demo_drive
from semla_ros.lab.world.render import Scene
from semla_ros.nodes import messages
from semla_ros.nodes.parameter_descriptors import descriptor_of
from semla_ros.serving.memory import keep_large_blocks
from semla_ros.serving.ros_logging import forward_logs, stop_forwarding

# Reliable, so that a recorder misses nothing; whoever asks for best effort gets that.
CAMERA_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
# Latched, so that the end is heard by all; deep, so that a monitor reads the segment of every image.
SEGMENT_QOS = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
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


@dataclass(frozen=True, eq=False)
class RenderedFrame:
    """One image of the drive, ready to be published."""

    index: int
    segment: str  # domain of the pure segment; empty in a transition
    scene: Scene


class RenderAhead:
    """Renders a drive in a thread of its own, never more than a few frames ahead.

    Args:
        drive: What is filmed.
        config: Rate, size, look-ahead.
    """

    def __init__(self, drive: Drive, config: SceneCameraConfig) -> None:
        self._drive, self._config = drive, config
        self._pool = ThreadPoolExecutor(1, "semla-render")
        self._indices = iter(range(config.frame_count))
        self._ahead: deque[Future[RenderedFrame]] = deque()
        for _ in range(config.look_ahead):
            self._request_next()

    def next(self) -> RenderedFrame | None:
        """The next image, None at the end of the drive; raises what rendering it raised."""
        if not self._ahead:
            return None
        frame = self._ahead.popleft().result()
        self._request_next()
        return frame

    @property
    def is_filled(self) -> bool:
        """The look-ahead is complete, or the drive is shorter than it."""
        return all(frame.done() for frame in self._ahead)

    def close(self) -> None:
        """Stop rendering and join the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _request_next(self) -> None:
        index = next(self._indices, None)
        if index is not None:
            self._ahead.append(self._pool.submit(self._render, index))

    def _render(self, index: int) -> RenderedFrame:
        time_s = index / self._config.rate_hz
        scene = self._drive.render(time_s, self._config.width, self._config.height)
        return RenderedFrame(index, self._drive.segment_name(time_s), scene)


class SceneCameraNode(Node):
    """Publishes `image`, `ground_truth`, `camera_info` with equal headers, and `segment` with what the image shows."""

    def __init__(self, **options: Any) -> None:
        super().__init__("scene_camera", **options)
        self._config = self._read_parameters()
        self._log_handler = forward_logs(self.get_logger())
        self._image = self.create_publisher(Image, "image", CAMERA_QOS)
        self._truth = self.create_publisher(Image, "ground_truth", CAMERA_QOS)
        self._camera_info = self.create_publisher(CameraInfo, "camera_info", CAMERA_QOS)
        self._segment = self.create_publisher(String, "segment", SEGMENT_QOS)
        self._info = camera_info(self._config)
        self._sent = 0
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
        try:
            is_first = True
            while is_first or (self._config.loop and not self._is_stopping.is_set()):
                self._drive_once(wait=is_first)
                is_first = False
        except SemlaError as error:
            self.get_logger().error(f"the drive ended: {error}")
        except Exception as error:
            if self.context.ok():
                self.get_logger().error(f"the drive ended unexpectedly: {type(error).__name__}: {error}")
        finally:
            if self.context.ok() and not self._is_stopping.is_set():
                self._tell({"segment": "", "finished": True, "frames_sent": self._sent})
                self.get_logger().info(f"the drive is over: {self._sent} images")

    def _drive_once(self, *, wait: bool) -> None:
        config = self._config
        drive = demo_drive(config.seed, city=config.city, duration_s=config.duration_s)
        ahead = RenderAhead(drive, config)
        try:
            if wait:
                self._wait_for_start(ahead)
            period_s, due_s = 1.0 / config.rate_hz, time.monotonic()
            late = 0
            while not self._is_stopping.is_set():
                frame = ahead.next()
                if frame is None:
                    break
                delay_s = due_s - time.monotonic()
                if delay_s > 0:
                    self._is_stopping.wait(delay_s)
                elif delay_s < -period_s:  # no burst to catch up: a real camera has none either
                    late += 1
                    due_s = time.monotonic()
                if self._is_stopping.is_set():
                    break
                self._publish(frame)
                due_s += period_s
            if late:
                self.get_logger().warning(
                    f"{late} images came late: fewer than {config.rate_hz:g} per second were rendered; lower rate_hz"
                )
        finally:
            ahead.close()

    def _wait_for_start(self, ahead: RenderAhead) -> None:
        """Until enough subscriptions are there and the first images are rendered."""
        needed = self._config.wait_for_subscribers
        if self._image.get_subscription_count() < needed:
            self.get_logger().info(f"waiting for {needed} subscription(s) to {self._image.topic_name}")
        counted_s = None
        while not self._is_stopping.is_set():
            now_s = time.monotonic()
            if self._image.get_subscription_count() < needed:
                counted_s = None
            elif counted_s is None:
                counted_s = now_s
            if counted_s is not None and ahead.is_filled and (not needed or now_s - counted_s >= _SETTLE_S):
                return
            self._is_stopping.wait(0.05)

    def _publish(self, frame: RenderedFrame) -> None:
        now = self.get_clock().now()
        header = Header(stamp=now.to_msg(), frame_id=self._config.frame_id)
        # What explains an image is out before it.
        self._tell({
            "segment": frame.segment, "stamp_ns": now.nanoseconds, "frame": frame.index,
            "frames": self._config.frame_count, "finished": False, "frames_sent": self._sent + 1,
        })  # fmt: skip
        self._truth.publish(messages.image_message(header, frame.scene.mask))
        size = self._info.width, self._info.height
        self._camera_info.publish(messages.camera_info_message(self._info, header, size, size)[0])
        self._image.publish(messages.image_message(header, frame.scene.image))
        self._sent += 1

    def _tell(self, status: dict[str, Any]) -> None:
        self._segment.publish(String(data=json.dumps(status)))

    def close(self) -> None:
        """Stop filming and join the threads."""
        self._is_stopping.set()
        self._thread.join()
        stop_forwarding(self._log_handler)


def camera_info(config: SceneCameraConfig) -> CameraInfo:
    """Calibration of the drive's pinhole camera, which has no distortion."""
    style = city_style(config.city)
    focal_px = style.focal * config.width
    # The camera looks level through a shifted lens: its principal point is on the horizon.
    center_x = config.width / 2
    center_y = config.height / 2 - focal_px * math.tan(math.radians(style.pitch_deg))
    info = CameraInfo(width=config.width, height=config.height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.k = [focal_px, 0.0, center_x, 0.0, focal_px, center_y, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [focal_px, 0.0, center_x, 0.0, 0.0, focal_px, center_y, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node; exit status 2 with one clear line for a wrong parameter."""
    keep_large_blocks()
    rclpy.init(args=None if arguments is None else list(arguments))
    try:
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
