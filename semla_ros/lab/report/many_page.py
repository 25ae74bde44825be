"""The report over many bags: what came out in all, and a line per bag that leads to its own report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from semla_ros import __version__

_TEMPLATES = Path(__file__).parent / "templates"


def write_many_report(path: Path, merged: Mapping[str, Any]) -> None:
    """Write the HTML file.

    Args:
        path: The file; the bags' own reports lie in folders beside it.
        merged: What the `summary.json` of many bags holds.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+.3f}".replace("-", "−")
    environment.filters["tone"] = lambda value: (
        "" if value is None or abs(value) < 0.005 else ("good" if value > 0 else "bad")
    )
    names = list(merged["variants"])
    primary, reference = merged["primary"], merged["reference"]
    bags = [
        {
            **entry,
            "link": f"{entry['out']}/report.html" if (path.parent / entry["out"] / "report.html").is_file() else "",
            "gain": _gain(entry["miou"], primary, reference),
        }
        for entry in merged["bags"]
    ]
    html = environment.get_template("replay_many.html").render(
        merged=merged,
        bags=bags,
        primary=primary,
        reference=reference,
        names=names,
        css=Markup((_TEMPLATES / "replay_report.css").read_text(encoding="utf-8")),
        version=__version__,
    )
    path.write_text(html, encoding="utf-8")


def _gain(miou: Mapping[str, float | None], primary: str, reference: str | None) -> float | None:
    ours, theirs = miou.get(primary), miou.get(reference or "")
    return None if ours is None or theirs is None else ours - theirs
