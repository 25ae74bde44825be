from __future__ import annotations

import json
from pathlib import Path

import pytest

from semla_ros.cli import main


def summary(path: Path, *, frames: int = 100, **variants: float | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {name: {"miou": miou, "fusions": 3, "flicker": 0.25} for name, miou in variants.items()}
    path.write_text(json.dumps({"frames": frames, "variants": entries}))
    return path


def test_two_replays_stand_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = summary(tmp_path / "a" / "summary.json", base=0.25, semla=0.5)
    second = summary(tmp_path / "b" / "summary.json", base=0.25, semla=0.625, uniform=0.125)
    assert main(["compare", str(first), str(second.parent)]) == 0
    printed = capsys.readouterr()
    lines = {line.split()[0]: line for line in printed.out.splitlines()}
    assert lines["semla"].split()[1:4] == ["0.500", "→", "0.625"]
    assert lines["base"].split()[1:3] == ["0.250", "25.0%"]
    assert lines["uniform"].split()[1:4] == ["–", "→", "0.125"]
    assert "shifted" not in lines["variant"]
    assert printed.err == ""
    assert main(["compare", str(first), str(second), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["semla"]["miou"] == [0.5, 0.625]


def test_other_frames_and_what_is_no_summary_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = summary(tmp_path / "a.json", frames=100, semla=0.5)
    second = summary(tmp_path / "b.json", frames=90, semla=0.5)
    assert main(["compare", str(first), str(second)]) == 0
    assert "of 100 and 90 frames" in capsys.readouterr().err
    for text in ("{", "[]", "{}", '{"frames": 3}'):
        second.write_text(text)
        assert main(["compare", str(first), str(second)]) == 2
        assert f"{second}: no" in capsys.readouterr().err
    assert main(["compare", str(first), str(tmp_path / "missing.json")]) == 2
    assert "missing.json: No such file" in capsys.readouterr().err
