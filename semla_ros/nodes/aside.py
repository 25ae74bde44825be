"""Answer slow service calls from a thread of their own, while the executor goes on with everything else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rclpy.node import Node
from rclpy.task import Future

logger = logging.getLogger(__name__)
Serve = Callable[[Any, Any], Any]


class Aside:
    """One thread that runs service callbacks, one after the other.

    A callback becomes a coroutine: the executor starts it, waits for other work, and sends the response when it is
    woken by the thread. So a single-threaded executor serves images while a model loads.

    Args:
        node: Its executor is woken.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._is_closing = False
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="semla-changes")

    def serving(self, callback: Serve) -> Callable[[Any, Any], Awaitable[Any]]:
        """The same callback, run aside.

        Should it raise, that is logged, and the response goes out as it is: an executor ends where a callback does.
        """

        async def serve(request: Any, response: Any) -> Any:
            answer: Future = Future()

            def work() -> None:
                try:
                    answer.set_result(callback(request, response))
                except Exception:
                    self._log("a service")
                    answer.set_result(response)
                finally:
                    if (executor := self._node.executor) is not None:
                        executor.wake()

            self._pool.submit(work)
            return await answer

        return serve

    def run(self, work: Callable[[], Any]) -> None:
        """Run something that nobody waits for; what it raises is logged."""

        def logged() -> None:
            try:
                work()
            except Exception:
                self._log("work beside the executor")

        self._pool.submit(logged)

    def _log(self, where: str) -> None:
        if self._node.context.ok():  # else the process was told to end meanwhile, and this comes of that
            logger.exception("unexpected error in %s", where)

    def in_executor(self, work: Callable[[], Any]) -> None:
        """Let the executor's thread do something, and wait for it.

        What the executor waits on must be destroyed there: its loop does not survive a handle that vanishes while it
        looks at it.

        Args:
            work: Done at once where no executor runs; must do no harm when done twice.
        """
        executor = self._node.executor
        done = threading.Event()

        def run() -> None:
            try:
                work()
            finally:
                done.set()

        if executor is not None and not self._is_closing:
            executor.create_task(run)
            while not self._is_closing:
                if done.wait(0.05):
                    return
        work()

    def close(self) -> None:
        """Finish what is under way, drop what waits, and join the thread. The executor must have stopped before."""
        self._is_closing = True
        self._pool.shutdown(wait=True, cancel_futures=True)
