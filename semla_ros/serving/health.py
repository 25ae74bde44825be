"""What the node says of itself: levels by thresholds, and for each worry a sentence that says what to do; no ROS."""

from __future__ import annotations

from dataclasses import dataclass

from semla_ros.config import DiagnosticsConfig
from semla_ros.pipeline_status import PipelineStatus
from semla_ros.results import Level, Status
from semla_ros.serving.camera_statistics import BROKEN, FAILED, OVERTAKEN, CameraSnapshot

ANOTHER_CLOCK_S = 60.0  # no camera is so late: its stamps are of another time
MANY_RESTARTS = 3  # a recording that loops does so less often within the window


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What the node itself knows.

    Attributes:
        lifecycle: Name of the lifecycle state.
        problem: Why the node could not be configured or activated; empty where nothing is wrong.
        progress: What a transition under way is doing; empty outside transitions.
        is_enabled: The enable service has not switched it off.
        model: Model id.
        library: Library folder.
        device: Device of the model.
        class_count: Classes in the vocabulary.
        vocabulary_version: Its version.
        memory_mb: Resident memory of the process.
        gpu_memory_mb: Memory of the GPU held by the process; None without one.
        uses_cv_bridge: Images are decoded by cv_bridge.
        refused: Latest refused change or call, with the reason; empty where none is recent.
        library_problem: Why the library on disk is not the one in use; empty where it is.
    """

    lifecycle: str
    problem: str = ""
    progress: str = ""
    is_enabled: bool = True
    model: str = ""
    library: str = ""
    device: str = ""
    class_count: int = 0
    vocabulary_version: int = 0
    memory_mb: float = 0.0
    gpu_memory_mb: float | None = None
    uses_cv_bridge: bool = False
    refused: str = ""
    library_problem: str = ""


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


def node_report(node_name: str, state: NodeState) -> Status:
    """The node as a whole: state, model, memory, and why it is not working if it is not."""
    worries = _Worries()
    if state.problem:
        worries.add(Level.ERROR, f"{state.problem}")
    elif state.progress:
        worries.add(Level.OK, state.progress)
    elif not state.is_enabled:
        worries.add(Level.OK, "switched off: call the enable service with true to go on")
    if state.refused:
        worries.add(Level.WARN, state.refused)
    if state.library_problem:
        worries.add(Level.WARN, state.library_problem)
    values = {
        "Lifecycle state": state.lifecycle,
        "Enabled": _yes_no(state.is_enabled),
        "Model": state.model,
        "Adapter library": state.library,
        "Device": state.device,
        "Classes": str(state.class_count),
        "Vocabulary version": str(state.vocabulary_version),
        "Memory (MB)": f"{state.memory_mb:.0f}",
        "Image codec": "cv_bridge" if state.uses_cv_bridge else "built in",
    }
    if state.gpu_memory_mb is not None:
        values["GPU memory (MB)"] = f"{state.gpu_memory_mb:.0f}"
    return Status(
        name=f"{node_name}: node", level=worries.level, message=worries.message(state.lifecycle), values=values
    )


def camera_report(
    node_name: str,
    camera: str,
    topic: str,
    snapshot: CameraSnapshot,
    config: DiagnosticsConfig,
    *,
    is_enabled: bool,
    hint: str = "check that the camera runs, and its topic name",
) -> Status:
    """One camera of an active node: rates, age, latencies, and what became of its images.

    Args:
        node_name: Name of the node.
        camera: Name of the camera; empty for the only one.
        topic: Full name of its image topic.
        snapshot: Its statistics.
        config: Thresholds.
        is_enabled: Whether the node answers images at all.
        hint: What to do where no image comes.
    """
    worries = _Worries()
    if snapshot.silence_s is None or snapshot.silence_s > config.stale_after_s:
        since = "yet" if snapshot.silence_s is None else f"for {snapshot.silence_s:.1f} s"
        worries.add(Level.STALE, f"no image on {topic} {since}: {hint}")
    elif is_enabled:
        _judge_flow(worries, snapshot, config)
    values = {
        "Topic": topic,
        "Image rate (Hz)": f"{snapshot.image_rate_hz:.2f}",
        "Mask rate (Hz)": f"{snapshot.mask_rate_hz:.2f}",
        "Images received": str(snapshot.received),
        "Masks published": str(snapshot.answered),
        "Images dropped": str(sum(snapshot.dropped.values())),
    }
    values |= {f"Dropped: {reason}": str(count) for reason, count in sorted(snapshot.dropped.items())}
    if snapshot.silence_s is not None:
        values["Time since image (s)"] = f"{snapshot.silence_s:.2f}"
    if snapshot.age_ms is not None:
        for key, milliseconds in (
            ("p50", snapshot.age_ms.p50), ("p95", snapshot.age_ms.p95), ("max", snapshot.age_ms.max),
        ):  # fmt: skip
            values[f"Frame age {key} (ms)"] = f"{milliseconds:.1f}"
    for stage, spread in snapshot.latency_ms.items():
        for key, milliseconds in (("p50", spread.p50), ("p95", spread.p95), ("max", spread.max)):
            values[f"Latency {stage} {key} (ms)"] = f"{milliseconds:.1f}"
    values["Last error"] = snapshot.last_error
    what = f"camera {camera}" if camera else "camera"
    healthy = f"{snapshot.mask_rate_hz:.1f} masks per second" if is_enabled else "switched off"
    return Status(name=f"{node_name}: {what}", level=worries.level, message=worries.message(healthy), values=values)


def _judge_flow(worries: _Worries, snapshot: CameraSnapshot, config: DiagnosticsConfig) -> None:
    received = max(snapshot.recent_received, 1)
    broken = snapshot.recent_dropped.get(BROKEN, 0)
    failed = snapshot.recent_dropped.get(FAILED, 0)
    if broken:
        is_bad = broken / received > config.max_broken_ratio
        worries.add(
            Level.ERROR if is_bad else Level.WARN,
            f"{broken} of {received} images were broken, the latest: {snapshot.last_error}",
        )
    if failed:
        worries.add(Level.ERROR, f"{failed} of {received} images could not be segmented: {snapshot.last_error}")
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
    if 0 < snapshot.mask_rate_hz < config.min_rate_hz:
        worries.add(
            Level.WARN,
            f"{snapshot.mask_rate_hz:.1f} masks per second are fewer than {config.min_rate_hz:g}: "
            f"images come at {snapshot.image_rate_hz:.1f} Hz",
        )


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
        node_name: Name of the node.
        scope: Camera that the model belongs to; empty where all share it.
        status: Of the pipeline.
        failure_age_s: Time since the latest failure was noticed; None where there was none.
        hold_s: How long a failure stays visible.
    """
    generation, mix = status.generation, status.generation.mix
    worries = _Worries()
    if failure_age_s is not None and failure_age_s <= hold_s:
        worries.add(Level.WARN, f"{status.last_error}; generation {generation.number}, the last good one, stays in use")
    for name, reason in sorted(status.library_problems.items()):
        worries.add(Level.WARN, reason if f"'{name}'" in reason else f"adapter '{name}' is left out: {reason}")
    if not status.library_size:
        worries.add(Level.WARN, "the library has no adapter to use: the base model serves; set library or add adapters")
    if mix.is_out_of_library:
        worries.add(
            Level.WARN,
            "no adapter fits the scene, the mix fades to the base model: add an adapter trained for such conditions",
        )
    values = {
        "Generation": str(generation.number),
        "Reason": generation.reason,
        "Mix": str(mix),
        "Base weight": f"{mix.base_weight:.3f}",
        "Out of library": _yes_no(mix.is_out_of_library),
        "Drift": "" if status.drift is None else f"{status.drift:.4f}",
        "Last action": status.last_action,
        "Frozen": _yes_no(status.is_frozen),
        "Scene embeddings": str(status.embeddings),
        "Retrievals": str(status.retrievals),
        "Fusions": str(status.fusions),
        "Failures": str(status.failures),
        "Scenes overtaken": str(status.replaced_scenes),
        "Last error": status.last_error,
        "Engine": status.engine,
        "Engine notes": "; ".join(status.engine_notes),
        "Adapters in library": str(status.library_size),
        "Adapters in memory": str(len(status.resident_adapters)),
        "Adapted weights (MB)": f"{status.adapted_weights_bytes / 1e6:.1f}",
    }
    stages = {**status.frame_latency_ms, **{f"adapt {key}": item for key, item in status.adaptation_latency_ms.items()}}
    for stage, spread in stages.items():
        for key, milliseconds in (("p50", spread.p50), ("p95", spread.p95), ("max", spread.max)):
            values[f"Latency {stage} {key} (ms)"] = f"{milliseconds:.1f}"
    what = f"adaptation of {scope}" if scope else "adaptation"
    state = f"generation {generation.number}: {mix}" + (" (frozen)" if status.is_frozen else "")
    return Status(name=f"{node_name}: {what}", level=worries.level, message=worries.message(state), values=values)


def _yes_no(claim: bool) -> str:
    return "yes" if claim else "no"
