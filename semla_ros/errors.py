"""One family of errors, so that a caller can catch what this package reports and nothing else.

Each message names the item, what was expected, what came, and what to do next.
"""

import difflib
from collections.abc import Iterable


class SemlaError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(SemlaError):
    """A setting is unknown, of the wrong type or out of range."""


class CheckpointError(SemlaError):
    """A model file is unreadable, incomplete or made for another architecture."""


class AdapterError(SemlaError):
    """One adapter cannot be used: damaged, unsupported or made for another base model."""


class LibraryError(SemlaError):
    """An adapter library as a whole cannot be used."""


class ImageError(SemlaError):
    """An image or image message cannot be decoded."""


class VocabularyError(SemlaError):
    """A class name or list of classes cannot be used as a vocabulary."""


class EngineError(SemlaError):
    """An engine cannot be built, loaded or trusted."""


class NotFiniteError(EngineError):
    """A model's answer is not finite, even in fp32: its weights are to blame."""


class OutOfMemoryError(EngineError):
    """There is no memory for an image, not even in the way that needs least."""


_NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "insufficient memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: torch has a type for that on CUDA alone, and runtimes have words."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint(("MemoryError", "OutOfMemoryError")) or any(
        words in str(error).lower() for words in _NO_MEMORY
    )


class DatasetError(SemlaError):
    """A data set folder lacks what the protocol needs, or holds something unreadable."""


class BagError(SemlaError):
    """A bag cannot be read, or lacks a topic."""


class FetchError(SemlaError):
    """A published file cannot be downloaded, does not have the expected digest, or cannot be published."""


class TrainingError(SemlaError):
    """A training run cannot start or go on."""


def known_names(name: str, known: Iterable[str], most: int = 24) -> str:
    """The end of a message about a name that is not there: the nearest one, or where none is near, what there is.

    Args:
        name: What was asked for.
        known: What there is.
        most: Names to list.
    """
    names = list(known)
    folded = {item.casefold(): item for item in reversed(names)}
    near = difflib.get_close_matches(name.casefold(), folded, n=1) or [
        item for item in reversed(folded) if name and name.casefold() in item
    ]
    if near:
        return f"did you mean '{folded[near[0]]}'?"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"known: {', '.join(names[:most]) or 'none'}{more}"


def counted(count: int, noun: str, many: str = "") -> str:
    """A count and what is counted: "1 image", "3 images".

    Args:
        count: How many.
        noun: What one of them is called.
        many: What several are called, where that is not `noun` with an "s".
    """
    return f"{count} {noun if count == 1 else many or f'{noun}s'}"


def first_line(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    lines = str(error).strip().split("\n")
    return (lines[0] or type(error).__name__)[:300]
