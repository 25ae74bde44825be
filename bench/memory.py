"""Memory of a serving process, by model size, library size and memory policy."""

from __future__ import annotations

from bench.random_world import Size
from bench.serving import serve_apart

COUNTS = (20, 1000)
COLUMNS = ("resident_mib", "peak_mib", "adapted_weights_mib")


def measure(size: Size, counts: tuple[int, ...] = COUNTS) -> dict[str, object]:
    """Figures for `memory`: 20 and 1,000 adapters, and the smaller library under the policy "single"."""
    rows = {f"{count} adapters": serve_apart(size, count) for count in counts}
    rows[f"{counts[0]} adapters, single"] = serve_apart(size, counts[0], "single")
    first = rows[f"{counts[0]} adapters"]
    return {
        **{column: {name: row[column] for name, row in rows.items()} for column in COLUMNS},
        "weights_mib": first["weights_mib"],
        "encoder_mib": first["encoder_mib"],
    }
