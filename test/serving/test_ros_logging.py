"""What the core logs reaches the node's logger."""

from __future__ import annotations

import logging

from semla_ros.serving.ros_logging import forward_logs, stop_forwarding


def test_the_core_logs_through_the_node_with_its_traceback() -> None:
    class Logger:
        lines: list[tuple[str, str]] = []  # noqa: RUF012

        def get_effective_level(self) -> int:
            return 20

        def __getattr__(self, level: str):
            return lambda text: self.lines.append((level, text))

    handler = forward_logs(Logger())
    core = logging.getLogger("semla_ros.some.module")
    try:
        core.debug("not wanted")
        core.info("adapter %s", "fog")
        core.warning("hot")
        try:
            raise ValueError("broken")
        except ValueError:
            core.exception("failed")
    finally:
        stop_forwarding(handler)
    core.warning("after the end")
    assert [line[0] for line in Logger.lines] == ["info", "warning", "error"]
    assert Logger.lines[0][1] == "adapter fog"
    assert "ValueError: broken" in Logger.lines[2][1]
