#!/usr/bin/env python3
"""Show what an image meets on its way through the node: modules and lines that run from its callback to its mask.

    tools/frame_path.py [--json]

One image is given to the subscription's callback of a real `PerceptionNode` on the shipped model, once the node has
answered others. Counted are the lines of this package that run until the mask is handed to rclpy, in the callback's
thread and in the one that segments, the model behind the engine apart (`engines/`, `segmentation/`). The ground floor
(`image_codec`, `image_samples`, `image_bytes`, `results`, `timing`) is listed with the rest and counted apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

MODEL = ("engines/", "segmentation/")
GROUND = ("image_codec", "image_samples", "image_bytes", "results", "timing")
WARM_UP = 3
WAIT_S = 120.0


class Trace:
    """Lines of the package that run in some threads while it records, until a message is published."""

    def __init__(self, package: Path, threads: tuple[str, ...]) -> None:
        self._package, self._threads = f"{package}/", threads
        self.is_recording = False
        self.is_published = threading.Event()
        self.lines: dict[str, set[int]] = defaultdict(set)

    def record(self) -> None:
        """Start anew."""
        self.lines.clear()
        self.is_published.clear()
        self.is_recording = True

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace function of a thread, called where a function is entered."""
        del event, argument
        file = frame.f_code.co_filename
        if file.endswith("rclpy/publisher.py") and frame.f_code.co_name == "publish" and self._is_watched():
            self.is_recording = False
            self.is_published.set()
        module = file.removeprefix(self._package)
        if module == file or module.startswith(MODEL) or not self._is_watched():
            return None

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            del argument
            if self.is_recording and event == "line":
                self.lines[module.removesuffix(".py")].add(frame.f_lineno)
            return count

        return count

    def _is_watched(self) -> bool:
        return threading.current_thread().name in self._threads


def measure() -> dict[str, int]:
    """Module -> lines that ran."""
    import numpy as np
    import rclpy
    from std_msgs.msg import Header

    import semla_ros
    from semla_ros.nodes.messages import image_message, to_stamp
    from semla_ros.nodes.perception_node import PerceptionNode

    trace = Trace(Path(semla_ros.__file__).parent, ("semla-frames", threading.current_thread().name))
    rclpy.init(args=["--ros-args", "-p", "autostart:=false"])
    node = PerceptionNode()
    node.trigger_configure()
    threading.settrace(trace)  # of threads to come
    node.trigger_activate()
    subscription = next(item for item in node.subscriptions if item.topic_name.endswith("/image"))
    image = np.full((192, 256, 3), 90, np.uint8)
    for _ in range(WARM_UP + 1):
        message = image_message(Header(frame_id="camera", stamp=to_stamp(time.time_ns())), image)
        trace.record()
        sys.settrace(trace)
        subscription.callback(message)
        sys.settrace(None)
        if not trace.is_published.wait(WAIT_S):
            raise TimeoutError("no mask")
        time.sleep(0.5)  # for a fusion that an image may have asked for
    node.close()
    node.destroy_node()
    rclpy.try_shutdown()
    return {module: len(lines) for module, lines in sorted(trace.lines.items())}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print modules and lines as JSON")
    arguments = parser.parse_args()
    lines = measure()
    if arguments.json:
        print(json.dumps(lines))
        return 0
    for module, count in lines.items():
        print(f"{count:5}  {module}")
    above = [module for module in lines if module not in GROUND]
    print(f"{sum(lines.values()):5}  in {len(lines)} modules, {len(above)} of them above the ground floor")
    return 0


if __name__ == "__main__":
    sys.exit(main())
