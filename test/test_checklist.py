"""Checklist and habits name tests that exist, and every habit has an answer with a test or a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


@pytest.mark.parametrize(("page", "least"), [("node_checklist.md", 50), ("vehicle.md", 20)])
def test_every_test_that_is_named_exists(page: str, least: int) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > least
    for file, name in named:
        tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
        assert name in {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}, f"{file}::{name}"


def test_every_habit_is_kept_or_has_a_reason() -> None:
    lines = (DOCS / "vehicle.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    habits = [row for row in rows if row[0] not in ("habit", "---")]
    assert len(habits) > 30
    for habit, where, here, held in habits:
        assert habit
        assert where
        assert re.match(r"yes|no|linted, not built|not tried", here), habit
        if here.startswith("yes"):
            assert re.search(r"`[\w/]+\.py(::\w+)?`", held), habit
        else:
            assert len(held) > 20, habit
