"""Resident memory of a serving process, by model size, library size and memory policy."""

from __future__ import annotations

from bench.random_world import Size
from bench.serving import serve_apart

COUNTS = (20, 1000)


def measure(size: Size, counts: tuple[int, ...] = COUNTS) -> dict[str, object]:
    """Figures for `memory`: 20 and 1,000 adapters, and the smaller library under the policy "single"."""
    rows = {f"{count} adapters": serve_apart(size, count) for count in counts}
    rows[f"{counts[0]} adapters, single"] = serve_apart(size, counts[0], "single")
    return {
        "resident_mib": {name: row["resident_mib"] for name, row in rows.items()},
        "adapted_weights_mib": {name: row["adapted_weights_mib"] for name, row in rows.items()},
        "weights_mib": rows[f"{counts[0]} adapters"]["weights_mib"],
    }
