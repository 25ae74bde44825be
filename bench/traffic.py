"""What a frame asks of a machine, counted without one: FLOPs and bytes of every operator, on tensors without values."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.random_world import Size, config_of, random_encoder
from semla_ros.engines.half_weights import HalfWeights
from semla_ros.segmentation.class_buckets import bucket_size
from semla_ros.segmentation.inference import InferenceMode, probability_maps
from semla_ros.segmentation.model import CatSeg
from semla_ros.segmentation.protocol import SegmentationModel
from semla_ros.segmentation.targets import lora_signature

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Traffic:
    """What was counted.

    Attributes:
        operators: FLOPs and bytes of each operator: its inputs are read and its outputs written once.
        weight_bytes: All parameters, once.
        peak_bytes: Most that intermediate results held at a time.
    """

    operators: list[tuple[int, int]] = field(default_factory=list)
    weight_bytes: int = 0
    peak_bytes: int = 0

    @property
    def flops(self) -> int:
        """Of matrix products, convolutions and attention; a multiplication and an addition are two."""
        return sum(flops for flops, _ in self.operators)

    @property
    def bytes(self) -> int:
        """Of all operators, nothing kept in a cache between two of them."""
        return sum(moved for _, moved in self.operators)

    def floor_ms(self, bytes_per_s: float, flops_per_s: float) -> float:
        """The roof line: no machine of these rates takes less, whatever is fused or cached."""
        return max(self.weight_bytes / bytes_per_s, self.flops / flops_per_s) * 1e3

    def operators_ms(self, bytes_per_s: float, flops_per_s: float) -> float:
        """One operator after the other, each at the rate that bounds it, with nothing between them."""
        return sum(max(moved / bytes_per_s, flops / flops_per_s) for flops, moved in self.operators) * 1e3


class _Attention(TorchFunctionMode):
    """Counts attention as one operator, as GPUs run it: its scores never reach the memory."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value, *_ = args
        answer = query.new_empty(*query.shape[:-1], value.shape[-1])
        flops = 2 * query.numel() * key.shape[-2] + 2 * answer.numel() * key.shape[-2]
        self._traffic.operators.append((flops, sum(_bytes(item) for item in (query, key, value, answer))))
        return answer


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every operator that computes; views cost nothing."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._traffic, self._held_bytes = traffic, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = function(*args, **(kwargs or {}))
        given = {id(item): item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)}.values()
        read = list(given)[1:] if function is torch.ops.aten.copy_.default else given  # its first is overwritten
        known = {item.untyped_storage()._cdata for item in given}
        written = [item for item in tree_leaves(answer) if isinstance(item, Tensor)]
        fresh = [item for item in written if item.untyped_storage()._cdata not in known]
        for item in fresh:
            self._hold(item.untyped_storage())
        is_view = not fresh and not function._schema.is_mutable
        if read and not is_view and not _only_makes_room(function):
            formula = flop_registry.get(function.overloadpacket)
            flops = formula(*args, **(kwargs or {}), out_val=answer) if formula else 0
            self._traffic.operators.append((flops, sum(_bytes(item) for item in (*read, *written))))
        return answer

    def _hold(self, storage: torch.UntypedStorage) -> None:
        self._held_bytes += storage.nbytes()
        self._traffic.peak_bytes = max(self._traffic.peak_bytes, self._held_bytes)
        weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, count: int) -> None:
        self._held_bytes -= count


def _only_makes_room(function: Any) -> bool:
    name = function.overloadpacket.__name__
    return bool(name.startswith("new_") or name.endswith("_like"))


def _bytes(tensor: Tensor) -> int:
    """What reading all of a tensor takes from the memory; of an expanded one, what stands behind it."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def count(module: nn.Module, run: Callable[[], object]) -> Traffic:
    """Traffic of a call whose tensors are on torch's `meta` device.

    Args:
        module: Whose weights it reads.
        run: The call.
    """
    traffic = Traffic(weight_bytes=sum(item.nbytes for item in module.parameters()))
    with torch.no_grad(), _Operators(traffic), _Attention(traffic):
        run()
    return traffic


@functools.cache
def model_without_values(size: Size, precision: str = "fp32") -> CatSeg:
    """The model of a size on torch's `meta` device, which must not be changed."""
    with torch.device("meta"):
        return CatSeg(config_of(size)).eval().requires_grad_(False).to(DTYPES[precision])


@functools.cache
def frame_traffic(
    size: Size, mode: InferenceMode, precision: str, image_size: tuple[int, int] = (480, 640), classes: int = 19
) -> Traffic:
    """Traffic of one frame from the image on the device to the mask there; the text tower is not part of it.

    Args:
        size: Of the model.
        mode: See `segmentation.inference`.
        precision: "fp32", "fp16" or "bf16", in which weights and activations are kept.
        image_size: Height and width.
        classes: Length of the vocabulary, filled up to its bucket.
    """
    return traffic_of(model_without_values(size, precision), mode, image_size, classes)


def traffic_of(model: SegmentationModel, mode: InferenceMode, image_size: tuple[int, int], classes: int) -> Traffic:
    """Like `frame_traffic`, of any model on the `meta` device, in the precision of its weights."""
    dtype = next(model.parameters()).dtype
    rows = bucket_size(classes, model.class_limit)
    with torch.device("meta"):
        text, presence = torch.empty(rows, *model.text_shape, dtype=dtype), torch.empty(rows, dtype=dtype)
        image = torch.empty(3, *image_size, dtype=torch.uint8)

    def predict(views: Tensor) -> Tensor:
        logits: Tensor = model(views.to(dtype), text, presence)
        return logits

    traffic = count(model, lambda: probability_maps(predict, model.config, image, mode))
    unread = [
        item
        for name, item in model.named_parameters()
        if name.startswith(model.text_tower) or name.endswith("token_embedding.weight")
    ]
    traffic.weight_bytes -= sum(item.nbytes for item in unread)
    return traffic


def embedding_traffic(size: Size, precision: str) -> Traffic:
    """Traffic of one scene embedding."""
    encoder = random_encoder(size, "meta")
    tower = encoder.tower.to(DTYPES[precision])
    height, width = encoder.preprocessing.height, encoder.preprocessing.width
    image = torch.empty(1, 3, height, width, dtype=DTYPES[precision], device="meta")
    return count(tower, lambda: tower(image))


def adapted_bytes(size: Size) -> int:
    """One copy of the weights that adapters change, which are kept and summed up in fp32 whatever serves."""
    targets = lora_signature(model_without_values(size))
    return sum(rows * columns for rows, columns in targets.values()) * torch.float32.itemsize


def half_copy_bytes(size: Size, precision: str) -> int:
    """The copy of the weights that frames read in half precision, see `HalfWeights`; 0 in fp32."""
    return 0 if precision == "fp32" else HalfWeights(model_without_values(size), DTYPES[precision]).nbytes


def fusion_bytes(size: Size, precision: str) -> tuple[int, int]:
    """What a fusion moves on a GPU beside the frames, and what its commit moves while they wait.

    The base weights are read and the standby copy is written; then that is copied over the weights in use, which
    captured graphs read where they lie. In half precision the copy that they read is rounded from those, besides.
    """
    adapted, half = adapted_bytes(size), half_copy_bytes(size, precision)
    return 2 * adapted, 2 * adapted + 3 * half
