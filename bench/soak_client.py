"""What the soak says to the node and hears of it, with an account of every image."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.soak_images import FRAME_IDS, Picture
from semla_ros.errors import SemlaError

IN_FLIGHT = 2  # one in the model, one waiting
TURN_S = 0.5  # an overtaken image never comes back: go on after so long
QUIET_S = 2.5  # more than two reports of the node
DROPPED = "Dropped: "


@dataclass
class SentImage:
    """An image under way."""

    picture: Picture
    frame_id: str
    ordinal: int  # among the valid ones
    masks: int = 0


class SoakClient:
    """A node of its own that feeds the perception node; all of its callbacks run in one thread."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import Image
        from std_srvs.srv import Trigger

        self._deep = QoSProfile(depth=100)
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        node = self._node = rclpy.create_node("soak", context=self._context, use_global_arguments=False)
        self._publisher = node.create_publisher(Image, "image", self._deep)
        node.create_subscription(Image, "perception/mask", self._on_mask, self._deep)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._set_parameters = node.create_client(SetParametersAtomically, "perception/set_parameters_atomically")
        self._reload = node.create_client(Trigger, "perception/reload_library")
        self._listeners: list[Any] = []
        self._statuses: dict[str, dict[str, str]] = {}
        self._baseline: dict[str, int] = {}
        self._progress = threading.Condition()
        self._sent: dict[int, SentImage] = {}  # by stamp in ns
        self._sent_broken = self._sent_valid = self._waiting = self._last_stamp_ns = 0
        self._masks = self._unasked_masks = self._wrong_masks = self._masks_of_broken = 0
        self._changes: list[tuple[bool, Any]] = []
        self._reloads: list[Any] = []
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(node)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopping.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    # Towards the node

    def wait_until_active(self, timeout_s: float, check: Callable[[], object]) -> None:
        """Wait for the node; `check` raises where it has ended."""
        end_s = time.monotonic() + timeout_s
        while not self._is_connected():
            check()
            if time.monotonic() > end_s:
                raise SemlaError(f"the perception node was not active within {timeout_s:.0f} s: {self._statuses}")
            time.sleep(0.1)

    def begin(self, picture: Picture, timeout_s: float) -> None:
        """Send a picture until its mask comes back, and count from there: the first answers may be lost."""
        end_s = time.monotonic() + timeout_s
        while not self._masks:
            if time.monotonic() > end_s:
                raise SemlaError(f"no mask of the first images within {timeout_s:.0f} s")
            self.send(picture)
            with self._progress:
                self._progress.wait_for(lambda: self._masks, 1.0)
        before: dict[str, str] = {}
        while before != (before := self._counters()):
            time.sleep(QUIET_S)
        self._baseline = {key: int(value) for key, value in before.items()}
        with self._progress:
            self._sent.clear()
            self._sent_broken = self._sent_valid = self._waiting = self._masks = 0

    def _counters(self) -> dict[str, str]:
        """What the node counts of the camera's images."""
        return {
            key: value
            for key, value in self._statuses.get("camera", {}).items()
            if key in ("Images received", "Masks published") or key.startswith(DROPPED)
        }

    def _is_connected(self) -> bool:
        return (
            self._statuses.get("node", {}).get("Lifecycle state") == "active"
            and self._publisher.get_subscription_count() == 1
            and self._set_parameters.service_is_ready()
            and self._reload.service_is_ready()
        )

    def wait_for_turn(self, in_flight: int = IN_FLIGHT) -> None:
        """Wait until so many images, the next one included, are with the node."""
        with self._progress:
            self._progress.wait_for(lambda: self._waiting < in_flight, TURN_S)

    def send(self, picture: Picture) -> None:
        """Publish an image with a stamp of its own."""
        from sensor_msgs.msg import Image

        from semla_ros.nodes.messages import byte_array, to_stamp

        message = Image()
        for field in ("encoding", "width", "height", "step"):
            setattr(message, field, getattr(picture, field))
        message.is_bigendian = int(picture.is_bigendian)
        message.data = byte_array(picture.data)
        stamp_ns = self._last_stamp_ns = max(time.time_ns(), self._last_stamp_ns + 1)
        message.header.stamp = to_stamp(stamp_ns)
        message.header.frame_id = FRAME_IDS[len(self._sent) // 100 % len(FRAME_IDS)]
        with self._progress:
            if picture.fault:
                self._sent_broken += 1
            else:
                self._sent_valid += 1
                self._waiting += 1
            self._sent[stamp_ns] = SentImage(picture, message.header.frame_id, self._sent_valid)
        self._publisher.publish(message)

    def change(self, values: dict[str, Any], is_right: bool) -> None:
        """Ask for a change of parameters, without waiting for the answer."""
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.parameter import Parameter

        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        self._changes.append((is_right, self._set_parameters.call_async(request)))

    def reload(self) -> None:
        """Ask for the library to be read again, without waiting for the answer."""
        from std_srvs.srv import Trigger

        self._reloads.append(self._reload.call_async(Trigger.Request()))

    def toggle_listeners(self) -> None:
        """Subscribe to what is only made for subscribers, or leave again."""
        self._executor.create_task(self._toggle_listeners)

    def _toggle_listeners(self) -> None:
        from sensor_msgs.msg import CompressedImage, Image

        if self._listeners:
            while self._listeners:
                self._node.destroy_subscription(self._listeners.pop())
            return
        for kind, name in ((Image, "overlay"), (Image, "confidence"), (CompressedImage, "mask/compressed")):
            topic = f"perception/{name}"
            self._listeners.append(self._node.create_subscription(kind, topic, lambda _: None, self._deep))

    # From the node

    def _on_mask(self, message: Any) -> None:
        from semla_ros.nodes.messages import stamp_ns

        with self._progress:
            self._masks += 1
            sent = self._sent.get(stamp_ns(message.header.stamp))
            if sent is None or sent.masks:
                self._unasked_masks += 1
                return
            sent.masks += 1
            if sent.picture.fault:
                self._masks_of_broken += 1
                return
            expected = (sent.frame_id, sent.picture.width, sent.picture.height, len(message.data))
            found = (message.header.frame_id, message.width, message.height, message.step * message.height)
            self._wrong_masks += found != expected
            self._waiting = self._sent_valid - sent.ordinal  # those before it are done with
            self._progress.notify_all()

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name.startswith("perception: "):
                values = {item.key: item.value for item in status.values}
                self._statuses[status.name.removeprefix("perception: ")] = values

    def settle(self, timeout_s: float) -> None:
        """Wait until every image is accounted for and every call answered, or the time is over."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            figures = self.account()
            accounted = figures["answered"] + sum(figures["dropped"].values())
            calls = figures["changes_unanswered"] + figures["reloads_unanswered"]
            if (
                figures["sent"] == figures["received"] == accounted
                and figures["masks"] == figures["answered"]
                and not calls
            ):
                return
            time.sleep(0.2)

    def account(self) -> dict[str, Any]:
        """All counts: of this side, and what the node says on /diagnostics."""
        adaptation = self._statuses.get("adaptation", {})
        camera = {key: int(value) - self._baseline.get(key, 0) for key, value in self._counters().items()}
        judged = [(is_right, call.result()) for is_right, call in self._changes if call.done()]
        reloads = [call.result() for call in self._reloads if call.done()]
        with self._progress:
            own = {
                "sent": self._sent_valid + self._sent_broken,
                "sent_broken": self._sent_broken,
                "masks": self._masks,
                "masks_of_broken": self._masks_of_broken,
                "wrong_masks": self._wrong_masks,
                "unasked_masks": self._unasked_masks,
            }
        return own | {
            "received": camera.get("Images received", 0),
            "answered": camera.get("Masks published", 0),
            "dropped": {key.removeprefix(DROPPED): count for key, count in camera.items() if key.startswith(DROPPED)},
            "changes": len(self._changes),
            "changes_refused": sum(not answer.result.successful for _, answer in judged),
            "changes_unanswered": len(self._changes) - len(judged),
            "changes_misjudged": sum(answer.result.successful != is_right for is_right, answer in judged),
            "refusals_without_reason": sum(
                not answer.result.successful and not answer.result.reason for _, answer in judged
            ),
            "reload_calls": len(self._reloads),
            "reloads_unanswered": len(self._reloads) - len(reloads),
            "reloads_failed": sum(not answer.success for answer in reloads),
            "reloads_with_a_broken_adapter": sum("left out" in answer.message for answer in reloads),
            "generations": int(adaptation.get("Generation", 0)),
            "last_error": adaptation.get("Last error", ""),
        }

    def close(self) -> None:
        """Leave the graph."""
        import rclpy

        self._stopping.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)
