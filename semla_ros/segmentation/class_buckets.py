"""Vocabularies rounded up to a few sizes, so that another number of classes fits what was compiled or captured.

Rows that stand in for no class are left out of class attention, the only place where classes meet, so the answer for
the real ones is the same; theirs is cut off.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_SMALLEST = 4
_STEPS_PER_DOUBLING = 4  # at most a quarter more classes than asked for


def bucket_size(count: int, limit: int = 0) -> int:
    """The next size at or above a number of classes: 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ...

    Args:
        count: Number of classes, >= 1.
        limit: `class_limit` of the model, which a vocabulary is not rounded past: of more classes the best are
            selected, and a filler could be among them; 0 where there is none.
    """
    size = _SMALLEST
    while size < count:
        octave = 1 << (size.bit_length() - 1)
        size += max(1, octave // _STEPS_PER_DOUBLING)
    return min(size, limit) if limit else size


def pad_vocabulary(text: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Fill class embeddings up with copies of the last one.

    Args:
        text: Class embeddings, shape (T, ...).
        size: T' >= T.

    Returns:
        Embeddings (T', ...); presence (T',), 1 for a class and 0 for a filler, of the same dtype.
    """
    missing = size - len(text)
    padded = torch.cat([text, text[-1:].expand(missing, *text.shape[1:])])
    presence = F.pad(text.new_ones(len(text)), (0, missing))
    return padded, presence
