"""The same model without adaptation, beside the node: a few frames live, all of them afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from semla_ros.errors import SemlaError
from semla_ros.lab.demo.recording import Recording
from semla_ros.lab.demo.score import LiveFigures, as_truth_classes
from semla_ros.lab.evaluation.miou import MiouMeter
from semla_ros.results import Frame, ImageArray, MaskArray

if TYPE_CHECKING:
    from semla_ros.pipeline import PerceptionPipeline  # loads torch, which the live comparison alone does not need

logger = logging.getLogger(__name__)


class BaseModel:
    """A pipeline that stays at generation 0: the weights as they were trained, for every frame.

    Args:
        pipeline: Not adapted yet; nothing may adapt it.
    """

    def __init__(self, pipeline: PerceptionPipeline) -> None:
        self._pipeline = pipeline

    @property
    def class_names(self) -> tuple[str, ...]:
        """Index in the mask -> name."""
        return tuple(self._pipeline.class_names)

    @property
    def adapter_families(self) -> dict[str, str]:
        """Adapters of the library that the node chooses from -> weather family, or the name where none is stated."""
        library = self._pipeline.library
        return {name: library.entry(name).family or name for name in library.names}

    def mask(self, image: ImageArray, stamp_ns: int) -> MaskArray:
        """Segment one RGB image (H, W, 3) without any adapter."""
        answer = self._pipeline.segment(Frame(image=image, stamp_ns=stamp_ns), want_confidence=False)
        if answer.generation.number != 0:
            raise SemlaError("the base model of the comparison was adapted; it must stay at generation 0")
        return answer.mask


class LiveComparison:
    """A thread that compares the newest answered frame every now and then, while the drive goes on.

    Base masks stay in the recording's store, so that they are not made again afterwards.

    Args:
        recording: What the monitor collects.
        base_model: Used by this thread alone until `stop`.
        truth_names: Class names of the truth.
        pause_s: Seconds between two frames; long enough to leave the processor to the nodes.
    """

    def __init__(
        self, recording: Recording, base_model: BaseModel, truth_names: Sequence[str], pause_s: float = 1.5
    ) -> None:
        self._recording, self._base_model, self._truth_names = recording, base_model, tuple(truth_names)
        self._pause_s = pause_s
        self._figures = LiveFigures()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="semla-demo-base", daemon=True)
        self._thread.start()

    @property
    def figures(self) -> LiveFigures:
        """Figures so far."""
        return self._figures

    def stop(self) -> None:
        """End the thread, after the frame in progress."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        base, adapted = MiouMeter(len(self._truth_names)), MiouMeter(len(self._truth_names))
        while not self._stopping.wait(self._pause_s):
            try:
                if self._compare_newest(base, adapted):
                    self._figures = LiveFigures(base.mean, adapted.mean, base.frames)
            except SemlaError as error:
                logger.warning("live comparison with the base model ended: %s", error)
                return

    def _compare_newest(self, base: MiouMeter, adapted: MiouMeter) -> bool:
        """Compare the newest frame that has image, truth and mask; False where it was compared before."""
        store = self._recording.store
        stamp_ns = max(store.stamps("image", "truth", "mask"), default=None)
        if stamp_ns is None or ("base", stamp_ns) in store:
            return False
        truth = store.get("truth", stamp_ns)
        mask = self._base_model.mask(store.get("image", stamp_ns), stamp_ns)
        renumbered = as_truth_classes(mask, self._base_model.class_names, self._truth_names)
        store.add("base", stamp_ns, renumbered)
        base.add(truth, renumbered)
        names = self._recording.class_names or self._truth_names
        adapted.add(truth, as_truth_classes(store.get("mask", stamp_ns), names, self._truth_names))
        return True
