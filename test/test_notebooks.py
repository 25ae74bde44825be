"""The notebooks run from the first cell to the last, in a folder of their own, and show what their cells end with."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from semla_ros import Result
from semla_ros.api.library import Report

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def code_cells(path: Path) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "commit it without outputs"
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict[str, Any]) -> object:
    """Run a cell; the value of its last line where that is an expression, as a notebook shows it."""
    body = ast.parse(source).body
    last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return None if last is None else eval(compile(last, "cell", "eval"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_and_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [run_cell(source, names) for source in code_cells(path)]
    results = [value for value in shown if isinstance(value, Result | Report)]
    assert results
    for value in results:
        assert value._repr_html_() if isinstance(value, Result) else value._repr_png_()


def test_there_are_the_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["first_mask", "own_adapter", "why_this_adapter"]
