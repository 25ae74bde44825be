"""The lifecycle node `perception`: camera images in, masks and what explains them out.

Threads (docs/decisions/0001-executor-and-threads.md): callbacks store the newest image and answer what is quick; one
thread decodes, segments and publishes; one makes slow changes; the pipeline's own one adapts.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from semla_ros.config import SemlaConfig
from semla_ros.errors import ConfigError, ImageError, SemlaError
from semla_ros.nodes import messages
from semla_ros.nodes.aside import Aside
from semla_ros.nodes.cv_bridge_codec import ImageDecoder, should_use
from semla_ros.nodes.outputs import SENSOR_QOS, CameraOutputs, ModelOutputs, overridable
from semla_ros.nodes.parameter_descriptors import descriptor_of
from semla_ros.nodes.ros_logging import forward_logs, stop_forwarding
from semla_ros.nodes.silence import why_silent
from semla_ros.results import Frame, Segmentation, Status
from semla_ros.serving import camera_statistics as drops
from semla_ros.serving.camera_slots import CameraSlots
from semla_ros.serving.camera_statistics import CameraStatistics
from semla_ros.serving.health import NodeState, adaptation_report, camera_report, node_report
from semla_ros.serving.library_watch import LibraryWatch
from semla_ros.serving.memory import give_back_memory, gpu_mb, keep_large_blocks, resident_mb
from semla_ros.serving.model_bank import Load, ModelBank, device_of, load_pipeline
from semla_ros.serving.parameters import QOS_PREFIX, SPECS, Settings, check_ranges, unknown_parameters

JUMP_BACK_NS = 500_000_000  # cameras may deliver a little out of order; farther back, a recording has started over
SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE, TransitionCallbackReturn.ERROR,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Arrival:
    """An image message that waits for its turn, with the time it came (`time.perf_counter`)."""

    message: Any
    came_s: float


@dataclass(eq=False)
class Taken:
    """An image whose turn it is; times by `time.perf_counter`."""

    camera: str
    arrival: Arrival
    frame: Frame
    has_stamp: bool
    taken_s: float
    decoded_s: float
    segmented_s: float = 0.0
    result: Segmentation | None = None


class PerceptionNode(LifecycleNodeMixin, Node):
    """See the module.

    Args:
        load: Makes a pipeline of its settings; tests give their own.
        **options: Passed on to `rclpy.node.Node`.
    """

    def __init__(self, load: Load = load_pipeline, **options: Any) -> None:
        Node.__init__(self, "perception", **options)
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._load = load
        self._log_handler = forward_logs(self.get_logger())
        self._problem = self._progress = self._refused = self._library_problem = ""
        self._refused_s = 0.0
        self._is_enabled = True
        self._is_active = False
        self._bank: ModelBank | None = None
        self._outputs: dict[str, CameraOutputs] = {}
        self._model_outputs: dict[str, ModelOutputs] = {}
        self._decoder = ImageDecoder(uses_cv_bridge=False)
        self._image_subscriptions: list[Any] = []
        self._camera_infos: dict[str, CameraInfo] = {}
        self._newest_stamp_ns: dict[str, int] = {}
        self._slots: CameraSlots[Arrival] = CameraSlots([])
        self._worker: threading.Thread | None = None
        self._watch: LibraryWatch | None = None
        self._change_lock = threading.RLock()  # one change of settings, library or adaptation at a time
        self._transition_lock = threading.Lock()
        self._is_syncing = False
        self._aside = Aside(self)
        self._declare_parameters()
        self._statistics = {camera: CameraStatistics() for camera in self._cameras}
        self._guard_transitions()
        self._set_parameters_aside()
        self._create_services()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(self._settings.node.diagnostics.period_s, self._report)
        if self._settings.node.watch_library_s:
            self.create_timer(self._settings.node.watch_library_s, self._look_at_library)
        threshold = JumpThreshold(
            min_forward=None, min_backward=Duration(nanoseconds=-JUMP_BACK_NS), on_clock_change=True
        )
        self._jump_handle = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)
        if self._settings.node.autostart:
            self._aside.run(self._autostart)

    # Parameters

    def _declare_parameters(self) -> None:
        """Declare the table with the given values; what is wrong with them keeps the node from being configured."""
        given = {
            name: parameter.value
            for name, parameter in self._parameter_overrides.items()
            if not name.startswith(QOS_PREFIX) and not self.has_parameter(name)
        }
        unknown = unknown_parameters(given)
        self._startup_problem = "; ".join(unknown)
        try:
            self._settings = Settings.make({name: value for name, value in given.items() if name in SPECS})
        except ConfigError as error:
            self._settings = Settings.make({})
            self._startup_problem = "; ".join([*unknown, str(error)])
        for name, spec in SPECS.items():
            self.declare_parameter(name, self._settings.values[name], descriptor_of(spec), ignore_override=True)
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Refuse undeclared parameters by name, which rclpy's own answer leaves out, and values out of range.

        The rest is as usual.
        """
        unknown = unknown_parameters(item.name for item in parameter_list if not self.has_parameter(item.name))
        if unknown:
            return SetParametersResult(successful=False, reason="; ".join(unknown))
        try:
            check_ranges({item.name: item.value for item in parameter_list})
        except ConfigError as error:
            what = f"change of {', '.join(item.name for item in parameter_list)} refused"
            return SetParametersResult(successful=False, reason=self._refuse(what, error))
        return super().set_parameters_atomically(parameter_list)

    def _set_parameters_aside(self) -> None:
        """Let changes of parameters run aside: new classes take as long as a fusion.

        rclpy's own callbacks would end the process at a parameter of no known type.
        """

        def one_by_one(request: Any, response: Any) -> Any:
            response.results = [self._set_from_messages([item]) for item in request.parameters]
            return response

        def at_once(request: Any, response: Any) -> Any:
            response.result = self._set_from_messages(request.parameters)
            return response

        callbacks = {SetParameters: one_by_one, SetParametersAtomically: at_once}
        for service in self.services:
            if service.srv_type in callbacks:
                service.callback = self._aside.serving(callbacks[service.srv_type])
                service.callback_group = ReentrantCallbackGroup()

    def _set_from_messages(self, items: Sequence[ParameterMessage]) -> SetParametersResult:
        try:
            return self.set_parameters_atomically([Parameter.from_parameter_msg(item) for item in items])
        except Exception as error:
            names = ", ".join(item.name for item in items)
            return SetParametersResult(successful=False, reason=self._refuse(f"change of {names} refused", error))

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Check the changes together, put them into use, and only then accept them."""
        changes = {item.name: item.value for item in parameters if item.name in SPECS}
        if self._is_syncing or not changes:
            return SetParametersResult(successful=True)
        with self._change_lock:
            try:
                changed = self._settings.changed(changes)
                if self._bank is not None:
                    self._bank.apply(self._settings, changed)
            except Exception as error:
                reason = self._refuse(f"change of {', '.join(changes)} refused", error)
                return SetParametersResult(successful=False, reason=reason)
            self._settings = changed
        return SetParametersResult(successful=True)

    def _show_values_in_use(self) -> None:
        """Let the parameters tell what model and library brought along: vocabulary, retrieval and drift settings."""
        assert self._bank is not None
        pipeline = self._bank.any
        settings = self._settings.with_recommended(pipeline.retrieval, pipeline.drift, pipeline.class_names)
        self._settings = settings
        self._is_syncing = True
        try:
            changes = [
                Parameter(name, value=settings.values[name])
                for name, spec in SPECS.items()
                if spec.is_live and settings.values[name] != self.get_parameter(name).value
            ]
            if changes:
                Node.set_parameters_atomically(self, changes)
        finally:
            self._is_syncing = False

    @property
    def _cameras(self) -> Sequence[str]:
        return self._settings.node.cameras or ("",)

    @property
    def _hardware_id(self) -> str:
        return self._settings.node.diagnostics.hardware_id or socket.gethostname()

    def _refuse(self, what: str, error: Exception) -> str:
        """Tell on /diagnostics and in the log what was not done, and why; returns the reason."""
        reason = self._reason(error)
        self.get_logger().warning(f"{what}: {reason}")
        self._refused, self._refused_s = f"{what}: {reason}", time.monotonic()
        return reason

    def _reason(self, error: Exception) -> str:
        """What an error says; one that nobody expected is named by its type and logged with its traceback."""
        if isinstance(error, SemlaError):
            return str(error)
        if self.context.ok():  # else the process was told to end meanwhile, and this comes of that
            self._log_handler.handle(_exception_record(error))
        return f"{type(error).__name__}: {error}"

    # Lifecycle

    def _guard_transitions(self) -> None:
        """One transition at a time, aside. An impossible one is refused; without this it would end the process."""
        change_state = self._service_change_state.callback

        def change(request: Any, response: Any) -> Any:
            try:
                with self._transition_lock:
                    return change_state(request, response)
            except Exception as error:
                self.get_logger().warning(f"transition refused: {error}")
                response.success = False
                return response

        change_aside = self._aside.serving(change)

        async def guarded(request: Any, response: Any) -> Any:
            if self._transition_lock.locked():
                self.get_logger().warning("transition refused: another one is under way")
                response.success = False
                return response
            return await change_aside(request, response)

        self._service_change_state.callback = guarded

    def _autostart(self) -> None:
        with self._transition_lock:
            if self.context.ok() and self.trigger_configure() == SUCCESS and self.context.ok():
                self.trigger_activate()

    def _run_transition(self, name: str, work: Any) -> TransitionCallbackReturn:
        """Run a transition; what fails is told on /diagnostics, and the node stays in the state before."""
        self._progress, self._problem = f"{name} is under way", ""
        try:
            work()
        except SemlaError as error:
            self._problem = f"{name} failed: {error}"
            self.get_logger().error(self._problem)
            return FAILURE
        except Exception as error:
            if not self.context.ok():  # the process was told to end meanwhile; whatever this is, it comes of that
                return FAILURE
            self._problem = f"{name} failed unexpectedly: {type(error).__name__}: {error}"
            self.get_logger().error(self._problem)
            self._log_handler.handle(_exception_record(error))
            return ERROR
        finally:
            self._progress = ""
        return SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up the model, and create the publishers."""
        del state
        return self._run_transition("configuring", self._configure)

    def _configure(self) -> None:
        if self._startup_problem:
            raise ConfigError(self._startup_problem)
        self._decoder = ImageDecoder(should_use(self._settings.node.cv_bridge))
        try:
            self._load_model()
        except BaseException:
            self._release()
            raise

    def _load_model(self) -> None:
        """Load and warm up the model with the present settings, and let it announce its generations."""
        started_s = time.perf_counter()
        model = self._settings.pipeline.model
        self._progress = f"loading model {model} and its adapter library"
        bank = ModelBank(self._load, self._settings, self._cameras)
        with self._change_lock:
            self._bank = bank
            self._show_values_in_use()
        try:
            self._create_outputs(bank)
        except (RuntimeError, ValueError) as error:  # what rclpy raises for a policy that it does not know
            raise ConfigError(f"{QOS_PREFIX}*: {error}") from None
        folder = getattr(getattr(bank.any, "library", None), "folder", None)
        self._watch = LibraryWatch(Path(folder)) if folder is not None else None
        self.get_logger().info(
            f"loaded in {time.perf_counter() - started_s:.1f} s: model {model}, "
            f"{len(bank.any.class_names)} classes, {bank.any.status().library_size} adapters"
        )

    def _create_outputs(self, bank: ModelBank) -> None:
        for camera in self._cameras:
            if camera not in self._outputs:  # they outlive a model that is released between two activations
                self._outputs[camera] = CameraOutputs(self, camera, self._settings.node.mask_scale)
        for scope, pipeline in bank.pipelines.items():
            if scope not in self._model_outputs:
                self._model_outputs[scope] = ModelOutputs(self, scope, self._hardware_id)
            pipeline.on_generation.append(self._model_outputs[scope].announce)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and start the threads that segment and adapt; load the model where it was released."""
        del state
        return self._run_transition("activating", self._activate)

    def _activate(self) -> None:
        if self._bank is None:
            try:
                self._load_model()
            except BaseException:
                self._release_model()
                raise
        assert self._bank is not None
        self._slots = CameraSlots(self._cameras)
        self._newest_stamp_ns.clear()
        for statistics in self._statistics.values():
            statistics.clear()
        for scope, pipeline in self._bank.pipelines.items():
            self._model_outputs[scope].announce(pipeline.generation)
        self._bank.start()
        self._worker = threading.Thread(target=self._work, name="semla-frames")
        self._worker.start()
        try:
            self._subscribe()
        except BaseException:
            self._deactivate()
            raise
        self._is_active = True

    def _subscribe(self) -> None:
        is_raw = self._settings.node.image_transport == "raw"
        message_type, suffix = (Image, "image") if is_raw else (CompressedImage, "image/compressed")
        options = {"qos_overriding_options": overridable()}
        try:
            for camera in self._cameras:
                prefix = f"{camera}/" if camera else ""
                self._image_subscriptions += [
                    self.create_subscription(
                        message_type, prefix + suffix, self._image_callback(camera), copy(SENSOR_QOS), **options
                    ),
                    self.create_subscription(
                        CameraInfo,
                        f"{prefix}camera_info",
                        self._camera_info_callback(camera),
                        copy(SENSOR_QOS),
                        **options,
                    ),
                ]
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"{QOS_PREFIX}*: {error}") from None
        unused = [name for name in self._parameter_overrides if not self.has_parameter(name) and name not in SPECS]
        if unused:
            raise ConfigError(
                f"unknown parameter '{sorted(unused)[0]}': no topic of this node has that setting; "
                "the name of a topic is written in full"
            )

    def _unsubscribe(self) -> None:
        while self._image_subscriptions:
            self.destroy_subscription(self._image_subscriptions.pop())

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking images, join the threads, and release the model where that is asked for."""
        del state

        def work() -> None:
            self._deactivate()
            if self._settings.node.release_on_deactivate:
                self._release_model()

        return self._run_transition("deactivating", work)

    def _deactivate(self) -> None:
        self._is_active = False
        self._aside.in_executor(self._unsubscribe)
        for camera in self._slots.close():
            self._statistics[camera].drop(self._now_s(), drops.STOPPED)
        if self._worker is not None:
            self._worker.join()
            self._worker = None
        if self._bank is not None:
            self._bank.stop()

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release model and publishers."""
        del state
        return self._run_transition("cleaning up", self._release)

    def _release(self) -> None:
        self._release_model()
        for outputs in (*self._outputs.values(), *self._model_outputs.values()):
            outputs.destroy()
        self._outputs.clear()
        self._model_outputs.clear()

    def _release_model(self) -> None:
        """Drop the model; parameters, publishers and what they have latched stay."""
        with self._change_lock:
            bank, self._bank, self._watch = self._bank, None, None
            self._library_problem = ""
        if bank is not None:
            bank.close()
        del bank
        for outputs in self._model_outputs.values():
            outputs.forget()
        give_back_memory()

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release, from any state."""
        del state
        return self._run_transition("shutting down", self._stop_all)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured with nothing held; the reason stays on /diagnostics."""
        del state
        try:
            self._stop_all()
        except Exception as error:
            self._log_handler.handle(_exception_record(error))
            return FAILURE  # finalized
        return SUCCESS

    def _stop_all(self) -> None:
        self._deactivate()
        self._release()

    def close(self) -> None:
        """Stop and release everything, and wait for every thread; the node is destroyed afterwards."""
        self._aside.close()
        self._stop_all()
        self._jump_handle.unregister()
        stop_forwarding(self._log_handler)

    # Frame path

    def _image_callback(self, camera: str) -> Any:
        statistics = self._statistics[camera]

        def store(message: Any) -> None:
            now_s = self._now_s()
            statistics.receive(now_s)
            if not self._is_enabled:
                statistics.drop(now_s, drops.DISABLED)
            elif self._slots.put(camera, Arrival(message, time.perf_counter())) is not None:
                statistics.drop(now_s, drops.OVERTAKEN)

        return store

    def _camera_info_callback(self, camera: str) -> Any:
        def store(message: CameraInfo) -> None:
            self._camera_infos[camera] = message

        return store

    def _work(self) -> None:
        """Answer images until the slots are closed. Whatever one image brings about, the next one gets its turn."""
        slots, bank = self._slots, self._bank
        assert bank is not None
        most = bank.most_at_once(self._settings.node.max_batch)
        while taken := slots.take(most):
            came: list[Taken] = []
            for camera, arrival in taken:
                with self._dropping(camera):
                    came.append(self._decode(camera, arrival))
            # A failure is that of all of them: they had one forward pass.
            with self._dropping(*(item.camera for item in came)):
                if came:
                    self._segment(bank, came)
            for item in came:
                if item.result is not None:
                    with self._dropping(item.camera):
                        self._publish(item, item.result)
            if not self.context.ok():  # the process is being ended: publishers are gone
                return

    @contextlib.contextmanager
    def _dropping(self, *cameras: str) -> Iterator[None]:
        """Count what fails inside as an image of each camera that was dropped, with the reason."""
        try:
            yield
        except ImageError as error:
            reason, text = drops.BROKEN, str(error)
        except Exception as error:
            if not self.context.ok():
                return
            reason, text = drops.FAILED, self._reason(error)
        else:
            return
        for camera in cameras:
            self._statistics[camera].drop(self._now_s(), reason, text)

    def _decode(self, camera: str, arrival: Arrival) -> Taken:
        taken_s = time.perf_counter()
        frame = messages.make_frame(arrival.message.header, self._decoder(arrival.message), camera)
        has_stamp = bool(frame.stamp_ns)
        if not has_stamp:  # adaptation goes by stamps; the mask's header stays what it is
            frame = replace(frame, stamp_ns=int(self._now_s() * 1e9))
        return Taken(camera, arrival, frame, has_stamp, taken_s, decoded_s=time.perf_counter())

    def _segment(self, bank: ModelBank, came: Sequence[Taken]) -> None:
        for item in came:
            self._notice_restart(bank, item.camera, item.frame.stamp_ns)
        want_confidence = any(self._outputs[item.camera].want_confidence for item in came)
        results = bank.segment([item.frame for item in came], want_confidence)
        segmented_s = time.perf_counter()
        for item, result in zip(came, results, strict=True):
            item.result, item.segmented_s = result, segmented_s

    def _publish(self, item: Taken, result: Segmentation) -> None:
        camera, arrival = item.camera, item.arrival
        # The mask's labels are out before the mask is, even when this thread is ahead of the one that committed.
        scope = camera if camera in self._model_outputs else ""
        self._model_outputs[scope].announce(result.generation)
        header, info = arrival.message.header, self._camera_infos.get(camera)
        self._outputs[camera].publish(header, item.frame, result, info, self._settings.node.overlay_alpha)
        done_s, now_s = time.perf_counter(), self._now_s()
        latency_ms = {
            "wait": item.taken_s - arrival.came_s,
            "decode": item.decoded_s - item.taken_s,
            "segment": item.segmented_s - item.decoded_s,
            "publish": done_s - item.segmented_s,
            "total": done_s - arrival.came_s,
        }
        age_ms = 1000 * now_s - item.frame.stamp_ns / 1e6 if item.has_stamp else None
        self._statistics[camera].answer(now_s, {stage: 1000 * value for stage, value in latency_ms.items()}, age_ms)

    def _notice_restart(self, bank: ModelBank, camera: str, stamp_ns: int) -> None:
        """Start over where a camera's stamps jump back, as they do when a recording loops."""
        newest = self._newest_stamp_ns.get(camera, stamp_ns)
        if stamp_ns < newest - JUMP_BACK_NS:
            self.get_logger().info(
                f"stamps jumped back by {(newest - stamp_ns) / 1e9:.1f} s: statistics start anew",
                throttle_duration_sec=5.0,
            )
            bank.reset_gate(camera)
            self._statistics[camera].restart(self._now_s())
            newest = stamp_ns
        self._newest_stamp_ns[camera] = max(newest, stamp_ns)

    def _on_clock_jump(self, jump: Any) -> None:
        """The ROS clock jumped back or changed its source: rates and ages of before mean nothing now."""
        del jump
        for statistics in self._statistics.values():
            statistics.clear()

    def _now_s(self) -> float:
        return self.get_clock().now().nanoseconds / 1e9

    # Services

    def _create_services(self) -> None:
        aside = {"callback_group": ReentrantCallbackGroup()}
        self.create_service(Trigger, "~/reload_library", self._aside.serving(self._serve_reload), **aside)
        self.create_service(SetBool, "~/freeze_adaptation", self._aside.serving(self._serve_freeze), **aside)
        self.create_service(Trigger, "~/reset_adaptation", self._aside.serving(self._serve_reset), **aside)
        self.create_service(SetBool, "~/enable", self._serve_enable)

    def _serve(self, response: Any, name: str, work: Any) -> Any:
        """Answer success with what was done, or why not."""
        with self._change_lock:
            try:
                if self._bank is None:
                    what = "activate" if self._lifecycle == "inactive" else "configure"  # inactive: released
                    raise ConfigError(f"the node is {self._lifecycle} and holds no model: {what} it first")
                response.message = work(self._bank)
                response.success = True
            except Exception as error:
                response.success, response.message = False, str(error)
                if not str(error) or str(error) not in self._library_problem:  # which is told for longer
                    response.message = self._refuse(f"{name} failed", error)
        return response

    def _serve_reload(self, request: Any, response: Any) -> Any:
        del request
        return self._serve(response, "reload_library", self._reload)

    def _reload(self, bank: ModelBank) -> str:
        try:
            bank.reload_library()
        except SemlaError as error:
            self._library_problem = f"the adapter library cannot be read: {error}; the one in memory stays in use"
            self.get_logger().warning(self._library_problem)
            raise
        self._library_problem = ""
        status = bank.any.status()
        problems = "".join(f"; left out: {reason}" for _, reason in sorted(status.library_problems.items()))
        return f"{status.library_size} adapters{problems}"

    def _serve_freeze(self, request: Any, response: Any) -> Any:
        def work(bank: ModelBank) -> str:
            bank.freeze(request.data)
            return "adaptation is frozen" if request.data else "adaptation follows the scene"

        return self._serve(response, "freeze_adaptation", work)

    def _serve_reset(self, request: Any, response: Any) -> Any:
        del request

        def work(bank: ModelBank) -> str:
            generations = bank.reset_adaptation()
            return f"base model, generation {', '.join(str(item.number) for item in generations)}"

        return self._serve(response, "reset_adaptation", work)

    def _serve_enable(self, request: Any, response: Any) -> Any:
        self._is_enabled = bool(request.data)
        response.success = True
        response.message = "images are answered" if self._is_enabled else "images are dropped"
        return response

    def _look_at_library(self) -> None:
        if self._watch is not None:
            self._aside.run(self._reload_if_changed)

    def _reload_if_changed(self) -> None:
        with self._change_lock:
            if self._bank is None or self._watch is None or not self._watch.has_changed():
                return
            with contextlib.suppress(SemlaError):  # told already
                self.get_logger().info(f"adapter library changed: {self._reload(self._bank)}")

    # Diagnostics

    @property
    def _lifecycle(self) -> str:
        return str(self._state_machine.current_state[1])

    def _report(self) -> None:
        try:
            reports = self._reports()
        except Exception as error:  # a model that is being released meanwhile; the next report is a second away
            if self.context.ok():
                self.get_logger().warning(f"no diagnostics: {self._reason(error)}", throttle_duration_sec=5.0)
            return
        self._diagnostics.publish(
            messages.diagnostic_message(reports, self.get_clock().now().to_msg(), self._hardware_id)
        )

    def _reports(self) -> list[Status]:
        name, config, now_s = self.get_name(), self._settings.node.diagnostics, self._now_s()
        bank = self._bank
        reports = [node_report(name, self._node_state(bank, config.hold_s))]
        if self._is_active:
            for camera, statistics in self._statistics.items():
                topic = self._image_topic(camera)
                snapshot = statistics.snapshot(now_s, config.hold_s)
                is_silent = snapshot.silence_s is None or snapshot.silence_s > config.stale_after_s
                hint = {"hint": why_silent(self, topic, self._settings.node.image_transport)} if is_silent else {}
                reports.append(
                    camera_report(name, camera, topic, snapshot, config, is_enabled=self._is_enabled, **hint)
                )
        if bank is not None:
            for scope, pipeline in list(bank.pipelines.items()):
                status = pipeline.status()
                age_s = bank.failure_age_s(scope, status.failures)
                reports.append(adaptation_report(name, scope, status, failure_age_s=age_s, hold_s=config.hold_s))
        return reports

    def _node_state(self, bank: ModelBank | None, hold_s: float) -> NodeState:
        pipeline = None if bank is None or not bank.pipelines else bank.any
        has_fresh_refusal = self._refused and time.monotonic() - self._refused_s <= hold_s
        config: SemlaConfig = self._settings.pipeline
        return NodeState(
            lifecycle=self._lifecycle,
            problem=self._problem,
            progress=self._progress,
            is_enabled=self._is_enabled,
            model=config.model,
            library=str(getattr(getattr(pipeline, "library", None), "folder", config.library)),
            device=device_of(pipeline) or config.inference.device,
            class_count=len(pipeline.class_names) if pipeline else 0,
            vocabulary_version=pipeline.generation.vocabulary_version if pipeline else 0,
            memory_mb=resident_mb(),
            gpu_memory_mb=gpu_mb(),
            uses_cv_bridge=self._decoder.uses_cv_bridge,
            refused=self._refused if has_fresh_refusal else "",
            library_problem=self._library_problem,
        )

    def _image_topic(self, camera: str) -> str:
        suffix = "image" if self._settings.node.image_transport == "raw" else "image/compressed"
        return self.resolve_topic_name(f"{camera}/{suffix}" if camera else suffix)


def _exception_record(error: BaseException) -> Any:
    import logging

    return logging.LogRecord(
        __name__, logging.ERROR, __file__, 0, "unexpected error", None, (type(error), error, error.__traceback__)
    )


def spin(node: PerceptionNode) -> None:
    """Serve until the process is told to end, then end every thread."""
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
        executor.shutdown(timeout_sec=5.0)
        node.destroy_node()
        rclpy.try_shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node."""
    keep_large_blocks()
    rclpy.init(args=None if arguments is None else list(arguments))
    spin(PerceptionNode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
