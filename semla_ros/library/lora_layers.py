"""Which layers a published weights file holds, and whether they fit the configuration and the base model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from semla_ros.library.lora_settings import LoraSettings
from semla_ros.library.safetensors_header import Header

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
KEY_START = "base_model.model."
FLOAT_TYPES = ("F32", "F16", "BF16", "F64")

Signature = Mapping[str, tuple[int, int]]  # module path -> (out features, in features)


def layer_paths(keys: Iterable[str]) -> list[str]:
    """Module paths in the keys of a published weights file."""
    end = ".lora_A.weight"
    return sorted(key[len(KEY_START) : -len(end)] for key in keys if key.startswith(KEY_START) and key.endswith(end))


def layer_keys(module: str) -> tuple[str, str]:
    """Keys of A and B of a layer."""
    return f"{KEY_START}{module}.lora_A.weight", f"{KEY_START}{module}.lora_B.weight"


def layers_problem(header: Header, settings: LoraSettings, targets: Signature | None) -> str | None:
    """What is wrong with the names, types or shapes in a weights file; None where nothing is.

    Args:
        header: Of the weights file.
        settings: Ranks that the configuration states.
        targets: Layers of the base model that may be adapted; None checks no shape against a model.
    """
    paths = layer_paths(header.tensors)
    wanted = {key for path in paths for key in layer_keys(path)}
    if strange := sorted(set(header.tensors) - wanted):
        return (
            f"tensor '{strange[0]}' is not one of a layer's pair "
            f"'{KEY_START}<module>.lora_A.weight' and '...lora_B.weight'; only plain LoRA can be fused"
        )
    if not paths:
        return f"{WEIGHTS_NAME} holds no layer; train it again"
    for path in paths:
        pair = [header.tensors.get(key) for key in layer_keys(path)]
        if pair[1] is None or pair[0] is None:
            return f"layer '{path}' lacks its lora_B.weight; copy the folder again"
        if wrong := [entry.dtype for entry in pair if entry is not None and entry.dtype not in FLOAT_TYPES]:
            return f"layer '{path}' is of type {wrong[0]}, expected {', '.join(FLOAT_TYPES)}"
        if targets is not None and path not in targets:
            return (
                f"module '{path}' is not one that the base model adapts; "
                "it was trained for another base model: retrain it or remove its folder"
            )
        target = targets[path] if targets is not None else None
        if problem := _shapes_problem(path, pair[0].shape, pair[1].shape, settings.rank_of(path), target):
            return problem
    return None


def _shapes_problem(
    path: str, shape_a: tuple[int, ...], shape_b: tuple[int, ...], rank: int, target: tuple[int, int] | None
) -> str | None:
    if len(shape_a) != 2 or len(shape_b) != 2 or shape_a[0] != rank or shape_b[1] != rank:
        return (
            f"layer '{path}' has A {shape_a} and B {shape_b}, expected ({rank}, in) and "
            f"(out, {rank}) by the rank in {CONFIG_NAME}; copy the folder again"
        )
    if target is not None and (shape_b[0], shape_a[1]) != tuple(target):
        return (
            f"layer '{path}' has A {shape_a} and B {shape_b}, expected ({rank}, {target[1]}) and "
            f"({target[0]}, {rank}); it was trained for another base model: retrain it or remove its folder"
        )
    return None
