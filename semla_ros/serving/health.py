"""What the node says of itself: levels by thresholds, and for each worry a sentence that says what to do; no ROS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from semla_ros.config import DiagnosticsConfig
from semla_ros.errors import counted
from semla_ros.library.manifest import NOT_FOR_CAMERAS, RENDERED
from semla_ros.pipeline_status import PipelineStatus
from semla_ros.results import Level, Status
from semla_ros.serving.camera_statistics import BROKEN, FAILED, OVERTAKEN, CameraSnapshot
from semla_ros.serving.frame_loop import FrameLoop
from semla_ros.serving.memory import gpu_mb, resident_mb
from semla_ros.serving.model_bank import ModelBank, device_of
from semla_ros.serving.parameters import Settings
from semla_ros.serving.troubles import Troubles
from semla_ros.timing import Hang, LatencySummary

ANOTHER_CLOCK_S = 60.0  # no camera is so late: its stamps are of another time
SWITCHED_OFF = "switched off: call the enable service with true to go on"
MANY_RESTARTS = 3  # a recording that loops does so less often within the window


class _Worries:
    """Collects sentences; the worst one decides the level."""

    def __init__(self) -> None:
        self.level = Level.OK
        self.sentences: list[str] = []

    def add(self, level: Level, sentence: str) -> None:
        self.level = max(self.level, level)
        self.sentences.append(sentence)

    def message(self, otherwise: str) -> str:
        return "; ".join(self.sentences) or otherwise


def node_report(
    node_name: str,
    lifecycle: str,
    settings: Settings,
    bank: ModelBank,
    frames: FrameLoop,
    troubles: Troubles,
    *,
    hang: Hang | None = None,
    clock_problem: str = "",
    ignored: Sequence[str] = (),
    passed_over: Sequence[str] = (),
) -> Status:
    """The node as a whole: state, model, memory, and why it is not working if it is not.

    Args:
        node_name: Fully qualified name of the node.
        lifecycle: Name of its lifecycle state.
        settings: Its parameters.
        bank: Its models.
        frames: Its frame path.
        troubles: What is wrong with it.
        hang: The stage in which the frame path hangs.
        clock_problem: What is wrong with the clock; empty where nothing is.
        ignored: Parameters that were set for every node and are none of this one.
        passed_over: A sentence for each parameter file that is for other nodes alone.
    """
    worries = _Worries()
    if hang is not None:
        worries.add(Level.ERROR, str(hang))
    if troubles.problem:
        worries.add(Level.ERROR, troubles.problem)
    elif troubles.progress:
        worries.add(Level.OK, troubles.progress)
    elif not frames.is_enabled:
        worries.add(Level.WARN, SWITCHED_OFF)
    for sentence in (
        troubles.latest_refusal(settings.node.diagnostics.hold_s),
        troubles.library_problem,
        clock_problem,
        *passed_over,
    ):
        if sentence:
            worries.add(Level.WARN, sentence)
    pipeline = next(iter(bank.pipelines.values()), None)
    values = {
        "Lifecycle state": lifecycle,
        "Enabled": _yes_no(frames.is_enabled),
        "Model": settings.pipeline.model,
        "Adapter library": str(bank.library_folder or settings.pipeline.library),
        "Device": device_of(pipeline) or settings.pipeline.inference.device,
        "Classes": str(len(pipeline.class_names) if pipeline else 0),
        "Vocabulary version": str(pipeline.generation.vocabulary_version if pipeline else 0),
        "Memory (MB)": f"{resident_mb():.0f}",
        "Image codec": frames.image_codec,
        "Ignored parameters": ", ".join(ignored),
    }
    if (gpu_memory_mb := gpu_mb()) is not None:
        values["GPU memory (MB)"] = f"{gpu_memory_mb:.0f}"
    return Status(name=f"{node_name}: node", level=worries.level, message=worries.message(lifecycle), values=values)


def camera_report(
    node_name: str,
    camera: str,
    topic: str,
    snapshot: CameraSnapshot,
    config: DiagnosticsConfig,
    *,
    is_enabled: bool,
    problem: str = "",
    read_as: str = "",
    calibration: str = "",
    hint: Callable[[], str] = lambda: "check that the camera runs, and its topic name",
    hang: Hang | None = None,
) -> Status:
    """One camera of an active node: rates, age, latencies, and what became of its images.

    Args:
        node_name: Fully qualified name of the node.
        camera: Name of the camera; empty for the only one.
        topic: Full name of its image topic.
        snapshot: Its statistics.
        config: Thresholds.
        is_enabled: Whether the node answers images at all.
        problem: What else is wrong with it; empty where nothing.
        read_as: Encoding that its images are read as; empty before the first one.
        calibration: What is known of its calibration.
        hint: Gives what to do where no image comes.
        hang: The stage in which the frame path hangs.
    """
    worries = _Worries()
    if hang is not None:
        worries.add(Level.ERROR, str(hang))
    elif snapshot.silence_s is None or snapshot.silence_s > config.stale_after_s:
        since = "yet" if snapshot.silence_s is None else f"for {snapshot.silence_s:.1f} s"
        worries.add(Level.STALE, f"no image on {topic} {since}: {hint()}")
    elif is_enabled:
        _judge_flow(worries, snapshot, config)
    if not is_enabled:
        worries.add(Level.WARN, SWITCHED_OFF)
    _judge_transport(worries, snapshot, config)
    if problem:
        worries.add(Level.WARN, problem)
    values = {
        "Topic": topic,
        "Read as": read_as,
        "Calibration": calibration,
        "Image rate (Hz)": f"{snapshot.image_rate_hz:.2f}",
        "Mask rate (Hz)": f"{snapshot.mask_rate_hz:.2f}",
        "Images received": str(snapshot.received),
        "Images lost on the way": str(snapshot.lost),
        "Masks published": str(snapshot.answered),
        "Images dropped": str(sum(snapshot.dropped.values())),
    }
    values |= {f"Dropped: {reason}": str(count) for reason, count in sorted(snapshot.dropped.items())}
    if snapshot.silence_s is not None:
        values["Time since image (s)"] = f"{snapshot.silence_s:.2f}"
    ages = {} if snapshot.age_ms is None else {"Frame age": snapshot.age_ms}
    if not ages and snapshot.answered and snapshot.has_stamps:
        values["Frame age"] = "unknown"
    values |= _milliseconds(ages | {f"Latency {stage}": spread for stage, spread in snapshot.latency_ms.items()})
    values["Last error"] = snapshot.last_error
    what = f"camera {camera}" if camera else "camera"
    healthy = f"{snapshot.mask_rate_hz:.1f} masks per second"
    return Status(name=f"{node_name}: {what}", level=worries.level, message=worries.message(healthy), values=values)


def _judge_flow(worries: _Worries, snapshot: CameraSnapshot, config: DiagnosticsConfig) -> None:
    received = max(snapshot.recent_received, 1)
    broken = snapshot.recent_dropped.get(BROKEN, 0)
    failed = snapshot.recent_dropped.get(FAILED, 0)
    if broken:
        is_bad = broken / received > config.max_broken_ratio
        worries.add(
            Level.ERROR if is_bad else Level.WARN,
            f"{broken} of {counted(received, 'image')} broken, the latest: {snapshot.last_error}",
        )
    if failed:
        worries.add(Level.ERROR, f"{failed} of {counted(received, 'image')} not segmented: {snapshot.last_error}")
    overtaken = snapshot.recent_dropped.get(OVERTAKEN, 0) / received
    if overtaken > config.max_drop_ratio:
        worries.add(
            Level.WARN,
            f"{overtaken:.0%} of the images were overtaken by newer ones, {snapshot.image_rate_hz:.1f} Hz come and "
            f"{snapshot.mask_rate_hz:.1f} Hz are answered: lower the camera's rate, use a faster device or fewer "
            "classes, or raise diagnostics.max_drop_ratio if only the newest image counts",
        )
    _judge_stamps(worries, snapshot, config)
    total = snapshot.latency_ms.get("total")
    if total is not None and total.p95 > config.max_latency_ms:
        worries.add(
            Level.WARN,
            f"a frame takes {total.p95:.0f} ms (95th percentile): use smaller images, fewer classes or a faster device",
        )
    is_settled = snapshot.span_s * config.min_rate_hz >= 2.0 or snapshot.span_s >= config.hold_s
    if snapshot.mask_rate_hz < config.min_rate_hz and is_settled:
        worries.add(
            Level.WARN,
            f"{snapshot.mask_rate_hz:.1f} masks per second are fewer than {config.min_rate_hz:g}: "
            f"images come at {snapshot.image_rate_hz:.1f} Hz",
        )


def _judge_transport(worries: _Worries, snapshot: CameraSnapshot, config: DiagnosticsConfig) -> None:
    sent = snapshot.recent_received + snapshot.recent_lost
    if snapshot.recent_lost > config.max_lost_ratio * sent:
        worries.add(
            Level.WARN,
            f"{snapshot.recent_lost} of {counted(sent, 'image')} lost on the way: on one machine give the camera's "
            "process the Fast DDS profile config/fastdds.xml, too; over a network take compressed images or raise "
            "net.core.rmem_max",
        )
    if snapshot.recent_late:
        worries.add(
            Level.WARN,
            f"{counted(snapshot.recent_late, 'time')} no image came within the deadline: check the camera's rate, or "
            "raise deadline in qos_overrides",
        )
    if not snapshot.is_alive:
        worries.add(Level.WARN, "no publisher of the images asserts its liveliness any more: check the camera's driver")


def _judge_stamps(worries: _Worries, snapshot: CameraSnapshot, config: DiagnosticsConfig) -> None:
    if not snapshot.has_stamps:
        worries.add(
            Level.WARN,
            "the images carry no stamp, so adaptation goes by the time of their arrival: let the camera driver set it",
        )
    elif snapshot.age_ms is not None and abs(snapshot.age_ms.p50) > config.max_age_ms:
        age_s = snapshot.age_ms.p50 / 1000
        if age_s < 0:
            sentence = f"stamps are {-age_s:.1f} s ahead of this clock: synchronise the clocks of camera and node"
        elif age_s > ANOTHER_CLOCK_S:
            sentence = f"stamps are {_duration(age_s)} behind this clock: for a recording set use_sim_time"
        else:
            sentence = (
                f"masks are {age_s:.1f} s old when published: the camera delivers late or the model is too slow for it"
            )
        worries.add(Level.WARN, sentence)
    if snapshot.recent_restarts >= MANY_RESTARTS:
        worries.add(
            Level.WARN,
            f"stamps jumped back {snapshot.recent_restarts} times lately, and each time adaptation starts over: check "
            "that one camera alone publishes on the topic, and its clock",
        )


def _duration(seconds: float) -> str:
    """In a unit that can be read."""
    for unit, length_s in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def adaptation_report(
    node_name: str, scope: str, status: PipelineStatus, *, failure_age_s: float | None, hold_s: float
) -> Status:
    """The adaptation path: generation, mix, drift, counters.

    Args:
        node_name: Fully qualified name of the node.
        scope: Camera that the model belongs to; empty where all share it.
        status: Of the pipeline.
        failure_age_s: Time since the latest failure was noticed; None where there was none.
        hold_s: How long a failure stays visible.
    """
    generation, mix = status.generation, status.generation.mix
    worries = _Worries()
    if failure_age_s is not None and failure_age_s <= hold_s:
        worries.add(Level.WARN, f"{status.last_error}; generation {generation.number} is in use: {mix}")
    for name, reason in sorted(status.library_problems.items()):
        worries.add(Level.WARN, reason if f"'{name}'" in reason else f"adapter '{name}' is left out: {reason}")
    if not status.library_size:
        worries.add(Level.WARN, "the library has no adapter to use: the base model serves; set library or add adapters")
    if mix.is_out_of_library:
        worries.add(
            Level.WARN,
            "no adapter fits the scene, the mix fades to the base model: add an adapter trained for such conditions",
        )
    if status.domain == RENDERED:
        worries.add(Level.OK, f"model and library are {NOT_FOR_CAMERAS}")
    values = {
        "Generation": str(generation.number),
        "Reason": generation.reason,
        "Mix": str(mix),
        "Base weight": f"{mix.base_weight:.3f}",
        "Out of library": "unknown" if status.spread_source == "unknown" else _yes_no(mix.is_out_of_library),
        "Spread of the adapters": status.spread_source,
        "Made for": status.domain or "not stated",
        "Drift": "" if status.drift is None else f"{status.drift:.4f}",
        "Last action": status.last_action,
        "Frozen": _yes_no(status.is_frozen),
        "Scene embeddings": str(status.embeddings),
        "Retrievals": str(status.retrievals),
        "Fusions": str(status.fusions),
        "Recalls": str(status.recalls),
        "Failures": str(status.failures),
        "Scenes overtaken": str(status.replaced_scenes),
        "Last error": status.last_error,
        "Engine": status.engine,
        "Engine notes": "; ".join(status.engine_notes),
        "Adapters in library": str(status.library_size),
        "Adapters without digests": ", ".join(
            sorted(status.adapters_without_digest, key=lambda name: name not in mix.names)
        ),
        "Adapters in memory": str(len(status.resident_adapters)),
        "Adapted weights (MB)": f"{status.adapted_weights_bytes / 1e6:.1f}",
    }
    values |= _milliseconds(
        {f"Latency {stage}": spread for stage, spread in status.frame_latency_ms.items()}
        | {f"Latency adapt {stage}": spread for stage, spread in status.adaptation_latency_ms.items()}
    )
    what = f"adaptation of {scope}" if scope else "adaptation"
    state = f"generation {generation.number}: {mix}" + (" (frozen)" if status.is_frozen else "")
    return Status(name=f"{node_name}: {what}", level=worries.level, message=worries.message(state), values=values)


def _milliseconds(summaries: Mapping[str, LatencySummary]) -> dict[str, str]:
    """The figures of each summary, each below a key of its own."""
    return {
        f"{name} {figure} (ms)": f"{value:.1f}"
        for name, summary in summaries.items()
        for figure, value in (("p50", summary.p50), ("p95", summary.p95), ("max", summary.max))
    }


def _yes_no(claim: bool) -> str:
    return "yes" if claim else "no"
