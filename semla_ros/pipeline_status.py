"""What the pipeline has done so far, counted as it happens and read in one piece."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from semla_ros.results import AdaptationStep, AdapterMix, Generation
from semla_ros.timing import LatencySummary, LatencyWindow

logger = logging.getLogger(__name__)
GENERATIONS_TOLD_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PipelineStatus:
    """A snapshot of the pipeline's state and counters.

    Attributes:
        engine: Name of the engine that serves.
        engine_notes: What the engine was asked for and could not give, with the reason.
        generation: The generation in use.
        frames: Frames segmented.
        retrievals: Scene embeddings that led to a retrieval.
        embeddings: Scene embeddings computed.
        fusions: Generations that were fused.
        recalls: Generations whose mix had served before and still stood by, so that nothing was fused.
        failures: Turns of the adaptation path, or changes asked for, that failed.
        replaced_scenes: Frames offered to the background thread that a newer one replaced.
        drift: Latest drift; None before the first scene embedding or after a reset.
        last_action: Action of the latest adaptation step; empty before the first.
        last_error: Latest failure; empty where there was none since the start.
        is_frozen: Adaptation is switched off.
        is_running: The background thread runs.
        frame_latency_ms: By stage of the frame path.
        adaptation_latency_ms: By stage of the adaptation path.
        library_size: Adapters that can be used.
        library_problems: Adapter name -> why it cannot be used.
        adapted_weights_bytes: Memory of base, live and standby weights.
        adapters_without_digest: Adapters whose files are held to nothing, so that a small damage may go unseen.
        resident_adapters: Adapters whose matrices are in memory.
        domain: What kind of images library or model were made for; empty where neither says.
        spread_source: How it is known that a scene lies outside: "measured", "estimated" or "unknown".
    """

    engine: str
    generation: Generation
    frames: int
    embeddings: int
    retrievals: int
    fusions: int
    recalls: int
    failures: int
    replaced_scenes: int
    drift: float | None
    last_action: str
    last_error: str
    is_frozen: bool
    is_running: bool
    frame_latency_ms: Mapping[str, LatencySummary]
    adaptation_latency_ms: Mapping[str, LatencySummary]
    library_size: int
    library_problems: Mapping[str, str]
    adapted_weights_bytes: int
    resident_adapters: tuple[str, ...]
    engine_notes: tuple[str, ...] = ()
    adapters_without_digest: tuple[str, ...] = ()
    domain: str = ""
    spread_source: str = "measured"


class Tally:
    """The pipeline's counters. Each field has one writer, the frame path or the adaptation path, but failures."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.failures = 0
        self.embeddings = 0
        self.retrievals = 0
        self.fusions = 0
        self.recalls = 0
        self.drift: float | None = None
        self.last_action = ""
        self.last_error = ""
        self.frame_latency = LatencyWindow()
        self.adaptation_latency = LatencyWindow()

    @property
    def frames(self) -> int:
        """Frames segmented; each adds to `frame_latency`."""
        return self.frame_latency.runs

    def count_step(self, step: AdaptationStep) -> None:
        """Count one turn of the adaptation path."""
        self.last_action = step.action
        self.embeddings += "embed" in step.latency_ms
        self.retrievals += step.mix is not None
        if step.drift is not None:
            self.drift = step.drift
        if step.error is not None:
            self.count_failure(step.error)
        self.adaptation_latency.add(step.latency_ms)

    def count_failure(self, error: str) -> None:
        """Remember what went wrong."""
        with self._lock:
            self.failures += 1
            self.last_error = error

    def clear_statistics(self) -> None:
        """Forget latencies and drift, as a recording that starts over asks for; counters go on."""
        self.drift = None
        self.frame_latency.clear()
        self.adaptation_latency.clear()


class GenerationLog:
    """Tells new generations in words, at most one within `GENERATIONS_TOLD_EVERY_S`; the next one says what went by."""

    def __init__(self) -> None:
        self._told = AdapterMix()
        self._told_s = -math.inf
        self._untold = 0

    def tell(self, generation: Generation, now_s: float) -> None:
        """Log a generation, and the mix that it took the place of.

        Args:
            generation: The new one.
            now_s: Of the steady clock.
        """
        if now_s - self._told_s < GENERATIONS_TOLD_EVERY_S:
            self._untold += 1
            return
        before = "" if generation.mix.id == self._told.id else f", instead of {self._told}"
        between = f"; {self._untold} others since the last one told" if self._untold else ""
        logger.info("generation %d (%s): %s%s%s", generation.number, generation.reason, generation.mix, before, between)
        self._told, self._told_s, self._untold = generation.mix, now_s, 0
