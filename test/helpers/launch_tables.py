"""The argument tables of the launch files, read without `launch`: they are plain tuples at the top of each file."""

from __future__ import annotations

import ast
from pathlib import Path

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
FILES = sorted(path.name.removesuffix(".launch.py") for path in LAUNCH.glob("*.launch.py"))


def arguments(name: str) -> dict[str, str]:
    """Argument -> description, over all tables of a launch file."""
    found: dict[str, str] = {}
    for statement in ast.parse((LAUNCH / f"{name}.launch.py").read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Tuple):
            continue
        for row in statement.value.elts:
            if isinstance(row, ast.Tuple):
                key, text = row.elts[0], row.elts[-1]
                assert isinstance(key, ast.Constant)
                assert isinstance(text, ast.Constant)
                found[key.value] = text.value
    return found
