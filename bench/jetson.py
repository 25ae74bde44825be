"""A plan for Jetson on paper: what a frame and a fusion ask for, and what published rates make of that.

python -m bench.jetson          # the tables of docs/jetson.md
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.gpu import table_rows
from bench.random_world import Size
from bench.traffic import (
    adapted_bytes,
    embedding_traffic,
    frame_traffic,
    fusion_bytes,
    half_copy_bytes,
    model_without_values,
)
from semla_ros.segmentation.inference import InferenceMode

PRECISION = "fp16"
SIZES: tuple[Size, ...] = ("b", "l")
MODES: tuple[InferenceMode, ...] = ("whole", "sliding")
RESERVED_MIB = 2500  # system, CUDA context, ROS; see docs/memory.md
RUNTIME_MIB = 420  # Python, torch and what the CPU side of a process holds; see docs/memory.md
MIB = 2**20


@dataclass(frozen=True)
class Module:
    """A Jetson module, by its vendor's data sheet.

    Attributes:
        memory_gib: Shared by CPU and GPU.
        bytes_per_s: Of that memory.
        flops_per_s: Dense matrix products in fp16 on the GPU: a quarter of its sparse INT8 rate, on Thor an eighth of
            its sparse FP4 rate.
    """

    name: str
    memory_gib: int
    bytes_per_s: float
    flops_per_s: float


MODULES = (
    Module("Orin Nano 8 GB", 8, 68e9, 40e12 / 4),
    Module("Orin Nano 8 GB, Super mode", 8, 102e9, 67e12 / 4),
    Module("Orin NX 16 GB", 16, 102.4e9, 60e12 / 4),
    Module("AGX Orin 64 GB", 64, 204.8e9, 170e12 / 4),
    Module("AGX Thor (T5000)", 128, 273e9, 2070e12 / 8),
)


def frame_rows() -> list[tuple[str, ...]]:
    """FLOPs and bytes of a frame, and its time on each module: roof line to operators alone."""
    rows = []
    for size in SIZES:
        for mode in MODES:
            traffic = frame_traffic(size, mode, PRECISION)
            times = (
                f"{traffic.floor_ms(module.bytes_per_s, module.flops_per_s):.0f} to "
                f"{traffic.operators_ms(module.bytes_per_s, module.flops_per_s):.0f}"
                for module in MODULES
            )
            counts = f"{traffic.flops / 1e9:.0f}", f"{traffic.bytes / 1e9:.1f}", f"{traffic.weight_bytes / 1e6:.0f}"
            rows.append((f"{size.upper()}, {mode}", *counts, *times))
    return rows


def adaptation_rows() -> list[tuple[str, ...]]:
    """The same for a scene embedding, and for a fusion and its commit, which only move bytes."""
    embedding = embedding_traffic("l", PRECISION)
    times = [f"{embedding.operators_ms(module.bytes_per_s, module.flops_per_s):.0f}" for module in MODULES]
    rows = [("scene embedding", f"{embedding.flops / 1e9:.0f}", f"{embedding.bytes / 1e9:.1f}", *times)]
    for size in SIZES:
        for precision in ("fp32", PRECISION):
            beside, waiting = fusion_bytes(size, precision)
            times = [
                f"{beside / module.bytes_per_s * 1e3:.0f} + {waiting / module.bytes_per_s * 1e3:.0f}"
                for module in MODULES
            ]
            moved = f"{beside / 1e9:.1f} + {waiting / 1e9:.1f}"
            rows.append((f"fusion + commit, {size.upper()} in {precision}", "", moved, *times))
    return rows


def needed_mib(size: Size, precision: str, memory: str, *, has_graphs: bool = True) -> float:
    """What a serving process holds: all weights, base values, standby copy, scene encoder, intermediate results.

    All weights are kept in fp32. In half precision a copy of those that frames and embeddings read comes on top, with
    graphs the intermediate results once more: torch keeps what the runs before the capture took.
    """
    model = model_without_values(size)
    weights = sum(item.nbytes for item in model.parameters())
    text = sum(item.nbytes for name, item in model.named_parameters() if ".clip_model.transformer." in name)
    standby = adapted_bytes(size) if memory == "double" else text
    encoder = embedding_traffic("l", "fp32").weight_bytes
    half = (
        0 if precision == "fp32" else half_copy_bytes(size, precision) + embedding_traffic("l", precision).weight_bytes
    )
    activations = frame_traffic(size, "whole", precision).peak_bytes * (2 if has_graphs else 1)
    return (weights + adapted_bytes(size) + standby + encoder + half + activations) / MIB + RUNTIME_MIB


def memory_rows() -> list[tuple[str, ...]]:
    """Whether each setting fits each module, beside what the system takes."""
    rows = []
    for size in SIZES:
        for precision in ("fp32", PRECISION):
            for memory in ("double", "single"):
                needed = needed_mib(size, precision, memory)
                fits = ("yes" if needed <= module.memory_gib * 1024 - RESERVED_MIB else "no" for module in MODULES)
                rows.append((f"{size.upper()}, {precision}, `{memory}`", f"{needed:.0f}", *fits))
    return rows


def main() -> None:
    """Print the tables."""
    names = tuple(module.name for module in MODULES)
    parts = (
        (("fp16", "GFLOP", "GB moved", "MB of weights", *(f"{name} (ms)" for name in names)), frame_rows()),
        (("beside it", "GFLOP", "GB moved", *(f"{name} (ms)" for name in names)), adaptation_rows()),
        (("setting", "MiB", *names), memory_rows()),
    )
    print("\n\n".join("\n".join(table_rows(head, rows)) for head, rows in parts))


if __name__ == "__main__":
    main()
