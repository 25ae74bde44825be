"""What a forward pass does without where it fails, so that the image at hand is answered all the same."""

from __future__ import annotations

import logging

import torch

from semla_ros.errors import EngineError, NotFiniteError, OutOfMemoryError, first_line, is_out_of_memory

logger = logging.getLogger(__name__)

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

# What plain torch in fp32, one image at a time, does not need -> what serves without it.
INSTEAD = {
    "runners": "torch alone",
    "half_weights": "weights cast in every frame",
    "fp16": "fp32",
    "bf16": "fp32",
    "compiled": "eager",
    "graphs": "eager",
    "batches": "one image at a time",
    "pinned": "pageable memory for transfers",
    "device_masks": "masks made on the CPU",
}

# What is given up, the likeliest cause first.
_FOR_VALUES = ("runners", "fp16", "bf16", "compiled", "graphs")
_FOR_MEMORY = (
    "half_weights",
    "batches",
    "device_masks",
    "pinned",
    "graphs",
    "compiled",
    "runners",
)  # activations in half save memory
_FOR_ANYTHING = ("runners", "graphs", "compiled", "batches", "pinned", "device_masks", "fp16", "bf16")


def safer_ways(present: frozenset[str], failure: EngineError, image_count: int) -> list[frozenset[str]]:
    """Ways to try, the nearest to the present one first.

    Each of the keys of `INSTEAD` that may be to blame is left out alone, then all of them. Where there is none, the
    same way is tried once more, as memory may have become free; values would only be the same again.

    Args:
        present: Keys of `INSTEAD` in use.
        failure: See `explained`.
        image_count: Images that are to be answered.
    """
    order: tuple[str, ...] = _FOR_ANYTHING
    if isinstance(failure, NotFiniteError):
        order = _FOR_VALUES
    elif isinstance(failure, OutOfMemoryError):
        order = _FOR_MEMORY
    doubtful = [item for item in order if item in present and (item != "batches" or image_count > 1)]
    if not doubtful:
        return [] if isinstance(failure, NotFiniteError) else [present]
    ways = [present - {item} for item in doubtful]
    return ways if len(ways) == 1 else [*ways, present - set(doubtful)]


def explained(error: Exception) -> EngineError:
    """One of this package's errors for what a forward pass raised.

    It holds no traceback, which would keep the tensors of the pass alive.
    """
    logger.debug("a forward pass failed", exc_info=error)
    if isinstance(error, NotFiniteError | OutOfMemoryError):
        return type(error)(str(error))
    if is_out_of_memory(error):
        return OutOfMemoryError(f"out of memory ({first_line(error)})")
    return EngineError(f"the forward pass fails ({first_line(error)})")
