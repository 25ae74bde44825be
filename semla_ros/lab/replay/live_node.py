"""Plays a recording to the real node over DDS at its own rate, and takes the masks that come back as the answers.

The node is the one of a vehicle, in a process of its own: its newest image wins, and it adapts beside the frames. A
thread sends the images when they are due, whatever becomes of the masks; what waits for those is behind by a latency.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header

from semla_ros.errors import EngineError, SemlaError
from semla_ros.lab.bags.frames import FrameSource, ReplayFrame
from semla_ros.lab.bags.label_map import raw_mask
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import NANOSECONDS
from semla_ros.lab.replay.comparison import ReplayVariant
from semla_ros.lab.replay.run import ReplayOptions
from semla_ros.lab.replay.runners import Answer, Outcome
from semla_ros.lab.replay.through_node import MASKS, NODE, QOS, NodeRunner, topic_of
from semla_ros.nodes import messages
from semla_ros.nodes.diagnostics_listener import statuses_of
from semla_ros.results import Generation, MaskInfo, Segmentation, Status

SILENCE_S = 20.0  # no mask for so long, of this image or a later one: something is stuck
REPORTS = 2  # the first report after the last mask may have been on its way before that was counted
REPORT_S = 1.5  # the node reports once a second


class _Sent(NamedTuple):
    """An image on its way."""

    number: int  # in the order of sending
    frame_id: str
    time_ns: int  # of the system clock


class LiveRunner(NodeRunner):
    """Answers each frame by its own mask, and by none where the node has dropped it for a newer one.

    Args:
        bag: What is played.
        options: How.
        cameras: Camera names; `[""]` for the only one.
        log: Where the node's output goes.
        resources: Ends the node and leaves the graph where it is closed.

    Raises:
        SemlaError: The node does not start; the message holds the reason that it gives.
    """

    module = "semla_ros.nodes.perception"
    answers = (*MASKS, "mask_info")

    def __init__(
        self, bag: Path, options: ReplayOptions, cameras: Sequence[str], log: Path, resources: ExitStack
    ) -> None:
        self._bag, self._options = bag, options
        self._news = threading.Condition()  # held to look at, and told of, all that threads change
        self._is_stopping = threading.Event()
        self._problem: BaseException | None = None
        self._sent: dict[tuple[str, int], _Sent] = {}
        self._sent_count, self._foreign, self._report_count = 0, 0, 0
        self._latency_ms: dict[tuple[str, int], float] = {}
        self._newest: dict[str, int] = {}  # camera -> number of the newest image that has its mask
        self._made: dict[tuple[str, int], Generation] = {}  # scope, number -> what the node announced
        super().__init__(options, cameras, log, resources)
        self._clock = self._node.create_publisher(Clock, "/clock", QOS)
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"semla-{work.__name__.strip('_')}")
            for work in (self._listen, self._play)
        ]
        resources.callback(self._stop)

    def run(self, item: ReplayFrame) -> Outcome:
        """Wait until a frame has been sent and answered, or passed over.

        Raises:
            SemlaError: The node has ended, or answers nothing any more.
        """
        camera, stamp_ns = item.frame.camera, item.frame.stamp_ns
        for thread in self._threads:
            if not thread.ident:  # all variants are ready now: the drive begins
                thread.start()
        with self._news:
            while not self._is_settled(camera, stamp_ns):
                self._check(camera, stamp_ns)
                self._news.wait(0.1)
            self._sent.pop((camera, stamp_ns), None)
            if stamp_ns in self._answers["mask", camera]:
                return Outcome.own(self._answer(item))
            self.dropped += 1
            return Outcome(None, self._generations[self._scope(camera)], ())

    def finish(self) -> tuple[Answer, ...]:
        """Wait for the report that counts the last mask."""
        with self._news:
            wanted = self._report_count + REPORTS
            self._news.wait_for(lambda: self._report_count >= wanted or self._problem, REPORTS * REPORT_S)
        return ()

    def facts(self) -> dict[str, Any]:
        """What the node counts beside what this runner does."""
        cameras = [status for status in self._reports if ": camera" in status.name]
        dropped = Counter[str]()
        for key, value in (item for status in cameras for item in status.values.items()):
            if key.startswith("Dropped: "):
                dropped[key.removeprefix("Dropped: ")] += int(value)
        return {
            "dropped": self.dropped,
            "fusions": _total(self.reports(), "Fusions"),
            "recalls": _total(self.reports(), "Recalls"),
            "adaptation_failures": _total(self.reports(), "Failures"),
            "sent": self._sent_count,
            "received_by_node": _total(cameras, "Images received"),
            "dropped_by_node": dict(dropped),
            "masks_of_no_image": self._foreign,  # no image was sent under their stamp and frame_id
        }

    # The wire, in two threads

    def _parameters(self, options: ReplayOptions) -> dict[str, Any]:
        values = super()._parameters(options)
        return {key: value for key, value in values.items() if "qos" not in key} | {"use_sim_time": True}

    def _listen_further(self) -> None:
        for camera in self._cameras:
            store = partial(self._store, "mask_info", camera)
            self._node.create_subscription(DiagnosticArray, NODE + topic_of(camera, "mask_info"), store, QOS)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except ExternalShutdownException:
            pass
        except BaseException as error:  # told by `run`, in the thread that can do something about it
            self._problem = error

    def _listen(self) -> None:
        self._executor.spin()

    def _play(self) -> None:
        """Send each image when it is due."""
        began_s, began_ns = time.monotonic(), None
        options = replace(self._options.frames, truth=("none",))
        with BagReader(self._bag) as bag, closing(FrameSource(bag, options, ()).frames()) as frames:
            for item in frames:
                began_ns = item.log_ns if began_ns is None else began_ns
                due_s = began_s + (item.log_ns - began_ns) / NANOSECONDS / self._options.speed
                if self._is_stopping.wait(max(0.0, due_s - time.monotonic())):
                    return
                self._send(item)

    def _send(self, item: ReplayFrame) -> None:
        frame = item.frame
        stamp = messages.to_stamp(frame.stamp_ns)
        message = messages.image_message(Header(stamp=stamp, frame_id=frame.frame_id), frame.image)
        self._clock.publish(Clock(clock=stamp))
        with self._news:
            self._sent[frame.camera, frame.stamp_ns] = _Sent(self._sent_count, frame.frame_id, time.time_ns())
            self._sent_count += 1
        self._images[frame.camera].publish(message)

    def _stop(self) -> None:
        self._is_stopping.set()
        self._executor.shutdown()
        for thread in self._threads:
            if thread.ident:
                thread.join()

    def _store(self, what: str, camera: str, message: Any, info: dict[str, int]) -> None:
        stamp_ns = messages.stamp_ns(message.header.stamp)
        with self._news:
            sent = self._sent.get((camera, stamp_ns))
            if sent is None or sent.frame_id != message.header.frame_id:
                self._foreign += what == "mask"
                return
            super()._store(what, camera, message, info)
            if what == "mask":
                self._latency_ms[camera, stamp_ns] = (info["received_timestamp"] - sent.time_ns) / 1e6
                self._newest[camera] = max(sent.number, self._newest.get(camera, 0))
            self._news.notify_all()

    def _store_generation(self, scope: str, message: DiagnosticArray) -> None:
        with self._news:
            super()._store_generation(scope, message)
            made = self._generations[scope]
            self._made[scope, made.number] = made
            self._news.notify_all()

    def _store_reports(self, message: DiagnosticArray) -> None:
        with self._news:
            super()._store_reports(message)
            self._report_count += 1
            self._news.notify_all()

    # What came of a frame

    def _scope(self, camera: str) -> str:
        return camera if camera in self._scopes else ""

    def _is_settled(self, camera: str, stamp_ns: int) -> bool:
        """Everything about its mask has come, or a mask of a later image: those come in order."""
        parts = [self._answers[what, camera].get(stamp_ns) for what in self.answers]
        if parts[0] is None:
            sent = self._sent.get((camera, stamp_ns))
            return sent is not None and self._newest.get(camera, 0) > sent.number
        return all(parts) and (self._scope(camera), self._info(camera, stamp_ns).generation) in self._made

    def _info(self, camera: str, stamp_ns: int) -> MaskInfo:
        return MaskInfo.from_status(statuses_of(self._answers["mask_info", camera][stamp_ns])[0])

    def _check(self, camera: str, stamp_ns: int) -> None:
        if self._problem is not None:
            raise self._problem
        self._check_process()
        sent = self._sent.get((camera, stamp_ns))
        if sent is not None and time.time_ns() - sent.time_ns > SILENCE_S * NANOSECONDS:
            raise EngineError(
                f"the perception node did not answer within {SILENCE_S:.0f} s the image of camera '{camera}' at "
                f"{stamp_ns} ns, nor a later one; its output is in {self._child.log}"
            )

    def _answer(self, item: ReplayFrame) -> Answer:
        camera, stamp_ns = item.frame.camera, item.frame.stamp_ns
        scope, info = self._scope(camera), self._info(camera, stamp_ns)
        self._made = {key: made for key, made in self._made.items() if key[0] != scope or key[1] >= info.generation}
        mask, confidence, _ = (self._answers[what, camera].pop(stamp_ns) for what in self.answers)
        took_ms = self._latency_ms.pop((camera, stamp_ns))
        segmentation = Segmentation(
            mask=raw_mask(mask),
            confidence=raw_mask(confidence),
            generation=self._made[scope, info.generation],
            stamp_ns=stamp_ns,
            camera=camera,
            frame_id=mask.header.frame_id,
            latency_ms={"model": info.latency_ms, "total": took_ms},
        )
        return Answer(item, segmentation, None, (), item.log_ns + round(1e6 * took_ms))


def _total(reports: Sequence[Status], key: str) -> int:
    return sum(int(status.values.get(key, 0)) for status in reports)


def make_runner(
    bag: Path, options: ReplayOptions, out: Path
) -> Callable[[ReplayVariant, Sequence[str], ExitStack], NodeRunner | None]:
    """What `Replay` needs: variants that follow the scene go through the node, the others stay in this process.

    Raises:
        SemlaError: No variant follows the scene throughout.
    """
    if not any(variant.kind == "semla" and not variant.library for variant in options.compare):
        raise SemlaError("the node needs the variant 'semla' in --compare: it is what the node does")

    def make(variant: ReplayVariant, cameras: Sequence[str], resources: ExitStack) -> NodeRunner | None:
        if variant.kind != "semla" or variant.library:
            return None
        log = out / "node.log"
        if options.rate == "live":
            return LiveRunner(bag, options, cameras, log, resources)
        return NodeRunner(options, cameras, log, resources)

    return make
