"""The kinds of models: this package's own, and those that other packages bring by entry point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points

from torch import Tensor

from semla_ros.errors import CheckpointError, first_line, known_names
from semla_ros.segmentation.protocol import SegmentationModel

ENTRY_POINTS = "semla_ros.models"
OWN_KINDS = {
    "catseg": "semla_ros.segmentation.model:CatSeg",
    "sed": "semla_ros.segmentation.sed:Sed",
}


def model_class(kind: str) -> type[SegmentationModel]:
    """The class of a kind of model; its module is imported here and nowhere earlier.

    Raises:
        CheckpointError: No package brings such a kind, or its module cannot be imported.
    """
    known = {point.name: point for point in _points()}
    if kind not in known:
        raise CheckpointError(
            f"no installed package brings models of the kind '{kind}' ({known_names(kind, sorted(known))}); "
            f"one that does has an entry point of that name in the group '{ENTRY_POINTS}'"
        )
    try:
        found: type[SegmentationModel] = known[kind].load()
    except Exception as error:  # somebody else's module can fail in any way
        raise CheckpointError(f"models of the kind '{kind}' cannot be imported: {first_line(error)}") from error
    return found


def recognised(tensors: Mapping[str, Tensor]) -> type[SegmentationModel]:
    """The kind of model whose checkpoint these tensors are.

    Raises:
        CheckpointError: They are of none.
    """
    for point in _points():
        found = model_class(point.name)
        if found.recognises(tensors):
            return found
    kinds = ", ".join(point.name for point in _points())
    raise CheckpointError(f"its tensors are those of no kind of model that is installed ({kinds})")


def _points() -> Iterator[EntryPoint]:
    yield from (EntryPoint(name, value, ENTRY_POINTS) for name, value in OWN_KINDS.items())
    yield from (point for point in entry_points(group=ENTRY_POINTS) if point.name not in OWN_KINDS)
