"""Import open_clip and peft where torchvision's compiled part does not load.

torchvision's only wheel on the package index is built for CUDA. Beside a CPU build of torch its library of compiled
operators cannot be loaded, and `import torchvision` stops where it describes the output shape of two of them. open_clip
and peft (through transformers) use only torchvision's image transforms, which need no operator, so telling torch the
two operators' schemas is enough. Where the real ones load, this module does nothing. Import both through it everywhere,
and in functions: they bring timm, torchvision and transformers, a second and 150 MB.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_registered: list[torch.library.Library] = []  # a library's schemas live as long as it does


def make_torchvision_importable() -> None:
    """Register the two schemas if torchvision cannot be imported without them."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            name = schema.split("(")[0]
            if not hasattr(torch.ops.torchvision, name):
                library.define(schema)  # type: ignore[no-untyped-call]
        _registered.append(library)
        importlib.import_module("torchvision")


def import_open_clip() -> ModuleType:
    """The open_clip package."""
    make_torchvision_importable()
    return importlib.import_module("open_clip")


def import_peft() -> ModuleType:
    """The peft package."""
    make_torchvision_importable()
    return importlib.import_module("peft")
