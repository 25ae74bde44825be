"""The node's own services, and the reload of an adapter library whose folder has changed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from semla_ros.errors import ConfigError, SemlaError, counted
from semla_ros.nodes.aside import Aside
from semla_ros.nodes.rclpy_internals import Serve, lifecycle_state
from semla_ros.serving.frame_loop import FrameLoop
from semla_ros.serving.model_bank import ModelBank
from semla_ros.serving.troubles import Troubles

logger = logging.getLogger(__name__)


class NodeServices:
    """Serves `reload_library`, `freeze_adaptation`, `reset_adaptation` and `enable`: what was done, or why not."""

    def __init__(self, node: Node, aside: Aside, bank: ModelBank, frames: FrameLoop, troubles: Troubles) -> None:
        self._node, self._aside, self._bank, self._frames, self._troubles = node, aside, bank, frames, troubles
        group = ReentrantCallbackGroup()
        for kind, name, work in (
            (Trigger, "reload_library", self._reload),
            (SetBool, "freeze_adaptation", self._freeze),
            (Trigger, "reset_adaptation", self._reset),
        ):
            callback = aside.serving(self._serving(name, work))
            node.create_service(kind, f"~/{name}", callback, callback_group=group)
        node.create_service(SetBool, "~/enable", self._enable)

    def _serving(self, name: str, work: Callable[[Any], str]) -> Serve:
        """A service that needs a model: `work` makes a message of the request, or raises."""

        def serve(request: Any, response: Any) -> Any:
            try:
                if not self._bank.pipelines:
                    state = lifecycle_state(self._node)
                    what = "activate" if state == "inactive" else "configure"  # inactive: released
                    raise ConfigError(f"the node is {state} and holds no model: {what} it first")
                response.message = work(request)
                response.success = True
            except Exception as error:
                response.success, response.message = False, str(error)
                if not str(error) or str(error) not in self._troubles.library_problem:  # which is told for longer
                    response.message = self._troubles.refuse(f"{name} failed", error)
            return response

        return serve

    def _reload(self, request: Any = None) -> str:
        del request
        try:
            self._bank.reload_library()
        except SemlaError as error:
            self._troubles.library_problem = (
                f"the adapter library cannot be read: {error}; the one in memory stays in use"
            )
            logger.warning(self._troubles.library_problem)
            raise
        self._troubles.library_problem = ""
        status = self._bank.any.status()
        problems = "".join(f"; left out: {reason}" for _, reason in sorted(status.library_problems.items()))
        return f"{counted(status.library_size, 'adapter')}{problems}"

    def _freeze(self, request: Any) -> str:
        self._bank.freeze(request.data)
        return "adaptation is frozen" if request.data else "adaptation follows the scene"

    def _reset(self, request: Any) -> str:
        del request
        numbers = [str(generation.number) for generation in self._bank.reset_adaptation()]
        return f"base model, generation {', '.join(numbers)}"

    def _enable(self, request: Any, response: Any) -> Any:
        self._frames.is_enabled = bool(request.data)
        response.success = True
        response.message = "images are answered" if request.data else "images are dropped"
        return response

    def look_at_library(self) -> None:
        """Reload the library aside where its folder has changed."""
        if self._bank.pipelines:
            self._aside.run(self._reload_if_changed)

    def _reload_if_changed(self) -> None:
        if self._bank.library_has_changed():
            with contextlib.suppress(SemlaError):  # told already
                logger.info("adapter library changed: %s", self._reload())
