"""Retrieval and memory as a library grows from ten adapters to ten thousand."""

from __future__ import annotations

from bench.random_world import Size
from bench.serving import serve_apart

COUNTS = (10, 100, 1000, 10000)


def measure(size: Size, counts: tuple[int, ...] = COUNTS) -> dict[str, object]:
    """One process per library size; figures for `retrieval`, the largest library against the smallest."""
    rows = {str(count): serve_apart(size, count) for count in counts}
    smallest, largest = rows[str(counts[0])], rows[str(counts[-1])]
    return {
        "by_adapters": rows,
        f"extra_ms_at_{counts[-1]}": largest["retrieve_median_ms"] - smallest["retrieve_median_ms"],
        f"rss_ratio_at_{counts[-1]}": largest["resident_mib"] / smallest["resident_mib"],
    }
