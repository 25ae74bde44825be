"""The lifecycle node `perception`: camera images in, masks and what explains them out.

Threads (docs/decisions/0001-executor-and-threads.md): callbacks store the newest image and answer what is quick; one
thread decodes, segments and publishes; one makes slow changes; one reports and guards by the steady clock; the
pipeline's own one adapts.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from semla_ros.config import NodeConfig
from semla_ros.errors import ConfigError, SemlaError
from semla_ros.image_codec import ImageDecoder
from semla_ros.library.manifest import NOT_FOR_CAMERAS, RENDERED
from semla_ros.nodes.aside import Aside
from semla_ros.nodes.messages import make_frame
from semla_ros.nodes.outputs import SENSOR_QOS, Outputs, overridable
from semla_ros.nodes.parameter_services import ParameterServices
from semla_ros.nodes.rclpy_internals import Serve, guard_transitions, listen, overriding_qos
from semla_ros.nodes.reporter import Reporter
from semla_ros.nodes.services import NodeServices
from semla_ros.nodes.start_log import start_lines
from semla_ros.results import Generation
from semla_ros.serving.frame_loop import FrameLoop
from semla_ros.serving.memory import GIVE_BACK_EVERY_S, give_back_free_pages, give_back_memory
from semla_ros.serving.model_bank import Load, ModelBank, load_pipeline
from semla_ros.serving.ros_logging import forward_logs, stop_forwarding
from semla_ros.serving.troubles import Troubles
from semla_ros.serving.watch import LOOK_S, HangWatch, SteadyJobs
from semla_ros.timing import JUMP_BACK_NS

if TYPE_CHECKING:
    from semla_ros.nodes.bond import Bond

logger = logging.getLogger(__name__)
SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE, TransitionCallbackReturn.ERROR,
)  # fmt: skip


class PerceptionNode(LifecycleNodeMixin, Node):
    """The life cycle, and the wiring of what lives in it.

    Args:
        load: Makes a pipeline of its settings; tests give their own.
        arguments: The command line that the process was started with.
        **options: Passed on to `rclpy.node.Node`.
    """

    def __init__(self, load: Load = load_pipeline, arguments: Sequence[str] = sys.argv, **options: Any) -> None:
        Node.__init__(self, "perception", **options)
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._log_handler = forward_logs(self.get_logger())
        self._troubles = Troubles(is_ending=lambda: not self.context.ok())
        self._aside = Aside(self)
        self._bank = ModelBank(load)
        parameters = ParameterServices(self, self._aside, self._bank, self._troubles, arguments)
        self._parameter_services = parameters
        self._outputs = Outputs(self, parameters)
        self._decoders: dict[str, ImageDecoder] = {}  # by camera, made on configure
        decode = partial(make_frame, self._decoders)
        self._frames = FrameLoop(parameters.cameras, decode, self._outputs, self.get_clock(), self._troubles)
        self._image_subscriptions: list[Any] = []
        self._load_s = 0.0  # that the model took to load, until that is told
        self._transition_lock = threading.Lock()
        guard_transitions(self, self._one_at_a_time)
        config = parameters.settings.node
        shared = (self._bank, self._frames, self._troubles)
        services = NodeServices(self, self._aside, *shared)
        report = Reporter(self, parameters, self._outputs, self._decoders, *shared).report
        self._bond = bond_of(self)
        self._hang_watch = HangWatch(self._frames, config.watchdog_s, report)
        jobs: list[tuple[float, Callable[[], object]]] = [
            (LOOK_S, self._hang_watch.look),
            (config.diagnostics.period_s, report),
            (GIVE_BACK_EVERY_S, give_back_free_pages),
        ]
        if config.watch_library_s:
            jobs.append((config.watch_library_s, services.look_at_library))
        if self._bond is not None:
            jobs.append((self._bond.BEAT_S, self._bond.beat))
        self._jobs = SteadyJobs(jobs, self._troubles.is_ending)
        threshold = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-JUMP_BACK_NS), on_clock_change=True
        )
        # Ages of before mean nothing where the ROS clock has jumped back or changed its source.
        self._jump_handle = self.get_clock().create_jump_callback(
            threshold, post_callback=lambda _: self._frames.clear_ages()
        )
        self._jobs.start()
        if config.autostart:
            self._aside.run(self._autostart)
        else:
            self._hang_watch.is_ready = True

    # Transitions

    def _one_at_a_time(self, change_state: Serve) -> Serve:
        """One transition at a time, aside; one that is impossible, or asked for meanwhile, is refused."""

        def change(request: Any, response: Any) -> Any:
            try:
                with self._transition_lock:
                    return change_state(request, response)
            except Exception as error:
                logger.warning("transition refused: %s", error)
                response.success = False
                return response

        change_aside = self._aside.serving(change)

        async def guarded(request: Any, response: Any) -> Any:
            if self._transition_lock.locked():
                logger.warning("transition refused: another one is under way")
                response.success = False
                return response
            return await change_aside(request, response)

        return guarded

    def _autostart(self) -> None:
        try:
            with self._transition_lock:
                if self.context.ok() and self.trigger_configure() == SUCCESS and self.context.ok():
                    self.trigger_activate()
        finally:
            self._hang_watch.is_ready = True

    def _run_transition(self, name: str, work: Callable[[], None]) -> TransitionCallbackReturn:
        """Run a transition; what fails is told on /diagnostics, and the node stays in the state before."""
        troubles = self._troubles
        troubles.progress, troubles.problem = f"{name} is under way", ""
        try:
            work()
        except Exception as error:
            is_expected = isinstance(error, SemlaError)
            if is_expected or not troubles.is_ending():
                how = "failed" if is_expected else "failed unexpectedly"
                troubles.problem = f"{name} {how}: {troubles.reason(error)}"
                logger.error("%s; %s", troubles.problem, self._next_step(name))
            return FAILURE if is_expected or troubles.is_ending() else ERROR
        finally:
            troubles.progress = ""
        return SUCCESS

    def _next_step(self, transition: str) -> str:
        """What to do once the reason of a failed transition has been mended."""
        verb = {"configuring": "configure", "activating": "activate"}.get(transition)
        if self._parameter_services.problem:
            return "start the node again with other parameters"
        name = self.get_fully_qualified_name()
        if verb is None:
            return f"semla status --node {name} says what it is now"
        return f"then: ros2 lifecycle set {name} {verb}; where a parameter is wrong that is not live, start it again"

    def on_configure(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up the model, and create the publishers."""
        return self._run_transition("configuring", self._configure)

    def on_activate(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and start the threads that segment and adapt; load the model where it was released."""
        return self._run_transition("activating", self._activate)

    def on_deactivate(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking images, join the threads, and release the model where that is asked for."""

        def work() -> None:
            self._deactivate()
            if self._parameter_services.settings.node.release_on_deactivate:
                self._release_model()

        return self._run_transition("deactivating", work)

    def on_cleanup(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Release model and publishers, and forget what was frozen or switched off, as when first created."""

        def work() -> None:
            self._release()
            self._forget_switches()

        return self._run_transition("cleaning up", work)

    def on_shutdown(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release, from any state."""
        return self._run_transition("shutting down", self._stop_all)

    def on_error(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured with nothing held; the reason stays on /diagnostics."""
        try:
            self._stop_all()
        except Exception:
            logger.exception("unexpected error")
            return FAILURE  # finalized
        return SUCCESS

    # What they do

    def _configure(self) -> None:
        if self._parameter_services.problem:
            raise ConfigError(self._parameter_services.problem)
        config = self._parameter_services.settings.node
        for camera in self._parameter_services.cameras:
            self._decoders[camera], self._frames.image_codec = _make_decoder(config)
        self._frames.max_rate_hz = config.max_rate_hz
        try:
            self._load_model()
        except BaseException:
            self._release()
            raise

    def _load_model(self) -> None:
        """Load and warm up the model with the present settings, and let it announce its generations."""
        started_s = time.perf_counter()
        parameters, bank = self._parameter_services, self._bank
        model = parameters.settings.pipeline.model
        self._troubles.progress = f"loading model {model} and its adapter library"
        bank.open(parameters.settings, parameters.cameras)
        parameters.show_values_in_use()
        with overriding_qos():
            self._outputs.create(bank.pipelines)
        for pipeline in bank.pipelines.values():
            pipeline.on_generation.append(self._on_generation)
        self._load_s = time.perf_counter() - started_s
        if bank.any.status().domain == RENDERED:
            logger.warning("model %s and its library are %s", model, NOT_FOR_CAMERAS)

    def _on_generation(self, generation: Generation) -> None:
        if generation.reason == "vocabulary":
            self._frames.expect_slow()

    def _activate(self) -> None:
        started_s, bank = time.perf_counter(), self._bank
        if not bank.pipelines:
            try:
                self._load_model()
            except BaseException:
                self._release_model()
                raise
        for scope, pipeline in bank.pipelines.items():
            self._outputs.announce(scope, pipeline.generation)
        bank.start()
        self._frames.start(bank, bank.most_at_once(self._parameter_services.settings.node.max_batch))
        try:
            self._subscribe()
        except BaseException:
            self._deactivate()
            raise
        if self._bond is not None:
            self._bond.start()
        seconds = self._load_s + time.perf_counter() - started_s
        self._load_s = 0.0
        lines = start_lines(self, self._parameter_services.settings, bank, self._image_subscriptions)
        logger.info("\n  ".join((f"active in {seconds:.1f} s", *lines)))

    def _subscribe(self) -> None:
        parameters = self._parameter_services
        message_type = Image if parameters.settings.node.image_transport == "raw" else CompressedImage
        with overriding_qos():
            for camera in parameters.cameras:
                create = partial(listen, self, self._frames.statistics[camera])
                image_topic, receive = parameters.image_topic(camera), partial(self._frames.receive, camera)
                self._listen(create, message_type, image_topic, receive)
                info_topic, take_info = parameters.info_topic(camera), partial(self._outputs.infos.__setitem__, camera)
                self._listen(self.create_subscription, CameraInfo, info_topic, take_info)
        parameters.tell_unused()

    def _listen(self, create: Callable[..., Any], kind: type, topic: str, callback: Callable[[Any], None]) -> None:
        subscription = create(kind, topic, callback, copy(SENSOR_QOS), qos_overriding_options=overridable())
        self._image_subscriptions.append(subscription)

    def _unsubscribe(self) -> None:
        while self._image_subscriptions:
            self.destroy_subscription(self._image_subscriptions.pop())

    def _deactivate(self) -> None:
        if self._bond is not None:
            self._bond.stop()
        self._aside.in_executor(self._unsubscribe)
        self._frames.stop()
        self._bank.stop()

    def _release(self) -> None:
        self._release_model()
        self._outputs.destroy()

    def _release_model(self) -> None:
        """Drop the model; parameters, publishers and what they have latched stay."""
        self._troubles.library_problem = ""
        self._bank.close()
        self._outputs.forget()
        give_back_memory()

    def _forget_switches(self) -> None:
        self._frames.is_enabled = True
        self._bank.forget_freeze()

    def _stop_all(self) -> None:
        self._deactivate()
        self._release()
        self._forget_switches()

    def refused(self, error: Exception) -> None:
        """Go on where a callback failed, and tell."""
        self._troubles.refuse("a callback failed", error)

    @property
    def is_changing(self) -> bool:
        """A transition is under way, such as the one that loads the model."""
        return bool(self._troubles.progress)

    def doing(self) -> str:
        """What the node is busy with, for who wants to end it."""
        hang = self._frames.hang()
        return "; ".join(filter(None, (self._troubles.progress, hang and f"{hang}"))) or "nothing known to hang"

    def close(self) -> None:
        """Stop and release everything, and wait for every thread; the node is destroyed afterwards."""
        self._jobs.close()
        self._hang_watch.close()
        self._aside.close()
        self._stop_all()
        self._jump_handle.unregister()
        stop_forwarding(self._log_handler)


def bond_of(node: Node) -> Bond | None:
    """The node's end of a bond; None where package `bond` is not installed."""
    try:
        from bond.msg import Status
    except ImportError:
        return None
    from semla_ros.nodes.bond import Bond

    return Bond(node, Status)


def _make_decoder(config: NodeConfig) -> tuple[ImageDecoder, str]:
    """What decodes a camera's images, and its name for reports."""
    how = config.max_image_pixels, config.assume_encoding, config.bits
    if config.cv_bridge == "always" or (config.cv_bridge == "auto" and find_spec("cv_bridge") is not None):
        from semla_ros.nodes.cv_bridge_codec import choose_decoder

        return choose_decoder(config.cv_bridge, *how)
    return ImageDecoder(*how), "built in"
