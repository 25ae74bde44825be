"""What the soak says to the node and hears of it, with an account of every image."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.soak_images import Picture, Stamp
from semla_ros.errors import SemlaError

IN_FLIGHT = 2  # one in the model, one waiting
TURN_S = 0.5  # an overtaken image never comes back: go on after so long
QUIET_S = 2.5  # more than two reports of the node
AROUND_S = 2.0  # images sent so long before and after a life-cycle change may fall between two subscriptions
TRANSITIONS = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}  # lifecycle_msgs/Transition
DROPPED = "Dropped: "


@dataclass
class SentImage:
    """An image under way."""

    picture: Picture
    stamp: Stamp
    ordinal: int  # among the valid ones
    sent_s: float
    is_around_change: bool
    masks: int = 0


class SoakClient:
    """A node of its own that feeds the perception node; all of its callbacks run in one thread.

    Each image has a frame id of its own, by which its mask is known whatever its stamp is.

    Args:
        transport: "raw" or "compressed".
    """

    def __init__(self, transport: str = "raw") -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from lifecycle_msgs.srv import ChangeState
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import CompressedImage, Image
        from std_srvs.srv import Trigger

        self._deep = QoSProfile(depth=100)
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        node = self._node = rclpy.create_node("soak", context=self._context, use_global_arguments=False)
        if transport == "raw":
            self._publisher = node.create_publisher(Image, "image", self._deep)
        else:
            self._publisher = node.create_publisher(CompressedImage, "image/compressed", self._deep)
        node.create_subscription(Image, "perception/mask", self._on_mask, self._deep)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._set_parameters = node.create_client(SetParametersAtomically, "perception/set_parameters_atomically")
        self._reload = node.create_client(Trigger, "perception/reload_library")
        self._change_state = node.create_client(ChangeState, "perception/change_state")
        self._listeners: list[Any] = []
        self._statuses: dict[str, dict[str, str]] = {}
        self._baseline: dict[str, int] = {}
        self._progress = threading.Condition()
        self._sent: dict[str, SentImage] = {}  # by frame id, in the order of sending
        self._sent_broken = self._sent_valid = self._sent_around_changes = self._waiting = self._frames = 0
        self._generations = 0  # seen on /diagnostics
        self._around_until_s = 0.0
        self._masks = self._unasked_masks = self._wrong_masks = self._masks_of_broken = self._masks_of_damaged = 0
        self._changes: list[tuple[bool | None, Any]] = []
        self._reloads: list[Any] = []
        self._transitions: list[tuple[bool, Any]] = []
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
            self.send(picture, divmod(time.time_ns(), 1_000_000_000))
            with self._progress:
                self._progress.wait_for(lambda: self._masks, 1.0)
        before: dict[str, str] = {}
        while before != (before := self._counters()):
            time.sleep(QUIET_S)
        self._baseline = {key: int(value) for key, value in before.items()}
        with self._progress:
            self._sent.clear()
            self._sent_broken = self._sent_valid = self._sent_around_changes = self._waiting = self._masks = 0

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
            and self.is_subscribed()
            and all(client.service_is_ready() for client in (self._set_parameters, self._reload, self._change_state))
        )

    def is_subscribed(self) -> bool:
        """Whether the node listens to the images."""
        return bool(self._publisher.get_subscription_count() == 1)

    def wait_for_turn(self, in_flight: int = IN_FLIGHT) -> None:
        """Wait until so many images, the next one included, are with the node."""
        with self._progress:
            self._progress.wait_for(lambda: self._waiting < in_flight, TURN_S)

    def send(self, picture: Picture, stamp: Stamp) -> None:
        """Publish an image with a stamp of (seconds, nanoseconds), whatever they are."""
        from builtin_interfaces.msg import Time
        from sensor_msgs.msg import CompressedImage, Image

        from semla_ros.nodes.messages import byte_array

        if picture.is_compressed:
            message = CompressedImage(format=picture.encoding)
        else:
            message = Image(is_bigendian=int(picture.is_bigendian))
            for field in ("encoding", "width", "height", "step"):
                setattr(message, field, getattr(picture, field))
        message.data = byte_array(picture.data)
        message.header.stamp = Time(sec=stamp[0], nanosec=stamp[1])
        message.header.frame_id = f"rig/camera_{self._frames}"
        self._frames += 1
        with self._progress:
            now_s = time.monotonic()
            if picture.fault:
                self._sent_broken += 1
            else:
                self._sent_valid += 1
                self._waiting += 1
            is_around = now_s < self._around_until_s
            self._sent_around_changes += is_around
            self._sent[message.header.frame_id] = SentImage(picture, stamp, self._sent_valid, now_s, is_around)
        self._publisher.publish(message)

    @contextmanager
    def around_change(self) -> Iterator[None]:
        """The life cycle changes inside: images that are sent now may never reach the node."""
        with self._progress:
            now_s, self._around_until_s = time.monotonic(), float("inf")
            for sent in reversed(self._sent.values()):
                if sent.sent_s < now_s - AROUND_S:
                    break
                self._sent_around_changes += not sent.is_around_change
                sent.is_around_change = True
        yield
        self._around_until_s = time.monotonic() + AROUND_S

    def transition(self, name: str, is_right: bool = True) -> Any:
        """Ask for a transition of the life cycle; returns the call, which is `done()` once it is answered."""
        from lifecycle_msgs.msg import Transition
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request(transition=Transition(id=TRANSITIONS[name]))
        call = self._change_state.call_async(request)
        self._transitions.append((is_right, call))
        return call

    def open_calls(self) -> int:
        """How many of the latest calls are not answered yet."""
        calls = [call for _, call in (*self._changes[-100:], *self._transitions[-1:])] + self._reloads[-100:]
        return sum(not call.done() for call in calls)

    def change(self, values: dict[str, Any], is_right: bool | None) -> None:
        """Ask for a change of parameters, without waiting for the answer; None: the answer may be either."""
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

    def stop_listening(self) -> None:
        """Leave where `toggle_listeners` has subscribed."""
        if self._listeners:
            self.toggle_listeners()

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
        stamp = message.header.stamp
        with self._progress:
            self._masks += 1
            sent = self._sent.get(message.header.frame_id)
            if sent is None or sent.masks:
                self._unasked_masks += 1
                return
            sent.masks += 1
            if sent.picture.fault:
                self._masks_of_broken += sent.picture.must_be_refused
                self._masks_of_damaged += not sent.picture.must_be_refused
                self._wrong_masks += (stamp.sec, stamp.nanosec) != sent.stamp
                return
            picture = sent.picture
            expected = (sent.stamp, picture.width, picture.height, picture.width * picture.height)
            found = ((stamp.sec, stamp.nanosec), message.width, message.height, len(message.data))
            self._wrong_masks += found != expected
            self._waiting = self._sent_valid - sent.ordinal  # those before it are done with
            self._progress.notify_all()

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            if status.name.startswith("/perception: "):
                values = {item.key: item.value for item in status.values}
                name = status.name.removeprefix("/perception: ")
                if name == "adaptation":  # a node that is configured again counts from 0
                    number, before = (int(each.get("Generation", 0)) for each in (values, self._statuses.get(name, {})))
                    self._generations += number - before if number >= before else number
                self._statuses[name] = values

    def settle(self, timeout_s: float) -> None:
        """Wait until every image is accounted for and every call answered, or the time is over.

        What was sent around a life-cycle change may be missing, once nothing has come for two reports.
        """
        end_s = time.monotonic() + timeout_s
        before: dict[str, Any] = {}
        changed_s = time.monotonic()
        while (now_s := time.monotonic()) < end_s:
            figures = self.account()
            if figures != before:
                before, changed_s = figures, now_s
            is_quiet = now_s - changed_s > 2 * QUIET_S
            lost, unheard = figures["sent"] - figures["received"], figures["answered"] - figures["masks"]
            excused = figures["sent_around_changes"] if is_quiet else 0
            is_accounted = figures["received"] == figures["answered"] + sum(figures["dropped"].values())
            if is_accounted and 0 <= lost <= excused and 0 <= unheard <= excused and not self.open_calls():
                return
            time.sleep(0.2)

    def account(self) -> dict[str, Any]:
        """All counts: of this side, and what the node says on /diagnostics."""
        adaptation = self._statuses.get("adaptation", {})
        camera = {key: int(value) - self._baseline.get(key, 0) for key, value in self._counters().items()}
        judged = [(is_right, call.result()) for is_right, call in self._changes if call.done()]
        transitions = [(is_right, call.result()) for is_right, call in self._transitions if call.done()]
        reloads = [call.result() for call in self._reloads if call.done()]
        with self._progress:
            own = {
                "sent": self._sent_valid + self._sent_broken,
                "sent_broken": self._sent_broken,
                "masks": self._masks,
                "sent_around_changes": self._sent_around_changes,
                "masks_of_broken": self._masks_of_broken,
                "masks_of_damaged": self._masks_of_damaged,
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
            "changes_misjudged": sum(
                is_right is not None and answer.result.successful != is_right for is_right, answer in judged
            ),
            "refusals_without_reason": sum(
                not answer.result.successful and not answer.result.reason for _, answer in judged
            ),
            "transitions": len(self._transitions),
            "transitions_unanswered": len(self._transitions) - len(transitions),
            "transitions_misjudged": sum(answer.success != is_right for is_right, answer in transitions),
            "reload_calls": len(self._reloads),
            "reloads_unanswered": len(self._reloads) - len(reloads),
            "reloads_failed": sum(not answer.success for answer in reloads),
            "reloads_with_a_broken_adapter": sum("left out" in answer.message for answer in reloads),
            "generations": self._generations,
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
