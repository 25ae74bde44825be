"""Put the figures of an evaluation into the cards of a model and its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HEADING = "## Figures"
_ROWS = (
    ("zero_shot", "base model, no adapter"),
    ("oracle", "this adapter alone"),
    ("semla", "SemLA"),
    ("semla_without_own", "SemLA without this adapter (leave-one-out)"),
)


def write_figures(results: Mapping[str, Any], library: Path, model: Path, command: str) -> list[Path]:
    """Write the section "Figures" of every card whose domain was evaluated; what stood there before is replaced.

    Args:
        results: As written by `summary.as_json`.
        library: Folder of the adapters; cards are `<library>/<name>/CARD.md`.
        model: The model's folder; its card is `README.md`.
        command: What produced the figures.

    Returns:
        The cards written. Domains without a card are passed over.
    """
    origin = f"mIoU on {len(results['seeds'])} x {results['images']} test scenes, `{command}`:"
    written = []
    for name, scores in results["domains"].items():
        rows = [(label, scores[key]) for key, label in _ROWS if scores.get(key) is not None]
        written += _replace_section(library / name / "CARD.md", origin, rows)
    rows = [(f"{name}, no adapter", scores.get("zero_shot")) for name, scores in results["source"].items()]
    means = results["h_mean"]
    rows += [
        (f"{len(results['domains'])} domains, h-mean: {label.replace('this adapter', 'the own adapter')}", means[key])
        for key, label in _ROWS
        if means.get(key) is not None
    ]
    written += _replace_section(model / "README.md", origin, [row for row in rows if row[1] is not None])
    return written


def _replace_section(card: Path, origin: str, rows: list[tuple[str, float]]) -> list[Path]:
    if not card.is_file() or not rows:
        return []
    text = card.read_text(encoding="utf-8").split(_HEADING)[0].rstrip()
    table = "\n".join(["| | mIoU |", "| --- | --- |", *(f"| {label} | {value:.3f} |" for label, value in rows)])
    card.write_text(f"{text}\n\n{_HEADING}\n\n{origin}\n\n{table}\n", encoding="utf-8")
    return [card]
