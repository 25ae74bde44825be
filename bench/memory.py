"""Memory of a serving process, by model size, library size and memory policy; on a GPU its memory, too."""

from __future__ import annotations

import torch

from bench.random_world import Size
from bench.serving import serve_apart

COUNTS = (20, 1000)
COLUMNS = ("resident_mib", "peak_mib", "device_mib", "adapted_weights_mib")


def measure(size: Size, counts: tuple[int, ...] = COUNTS) -> dict[str, object]:
    """Figures for `memory`: 20 and 1,000 adapters, and the smaller library under the policy "single"."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = {}
    for device in devices:
        suffix = ", GPU" if device == "cuda" else ""
        for count in counts:
            rows[f"{count} adapters{suffix}"] = serve_apart(size, count, device=device)
        rows[f"{counts[0]} adapters, single{suffix}"] = serve_apart(size, counts[0], "single", device)
    first = rows[f"{counts[0]} adapters"]
    return {
        **{column: {name: row[column] for name, row in rows.items()} for column in COLUMNS},
        "weights_mib": first["weights_mib"],
        "encoder_mib": first["encoder_mib"],
    }
