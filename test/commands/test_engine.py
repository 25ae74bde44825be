import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from semla_ros.cli import main

COMPONENTS = {"scene_encoder"}


@pytest.fixture(scope="module")
def built(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A folder of engines, made once, and what the command said. Read only."""
    folder = tmp_path_factory.mktemp("engines")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        options = ["--model", str(tiny_model_folder), "--device", "cpu", "--threads", "1", "--folder", str(folder)]
        status = main(["engine", "build", *options, "--json"])
    assert status == 0
    return folder, json.loads(said.getvalue())


@pytest.fixture
def folder(built, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(built[0], tmp_path / "engines"))


def test_build_tells_for_each_component_whether_it_serves_and_why(built) -> None:
    _, answer = built
    assert answer["runtime"] == "auto"
    rows = answer["components"]
    assert {row["component"] for row in rows if row["runtime"] == "onnx"} == COMPONENTS
    assert all(row["cosine"] > 0.999 and row["torch_ms"] > 0 and row["reason"] for row in rows)
    assert all(row["deviation"] < (0.05 if "bf16" in row["runtime"] else 0.01) for row in rows)
    served = [row["component"] for row in rows if row["serves"]]
    assert len(served) == len(set(served))
    assert all(any(name in note for note in answer["notes"]) for name in COMPONENTS - set(served))


def test_list_names_every_engine_with_its_size(folder, capsys) -> None:
    assert main(["engine", "list", "--folder", str(folder), "--json"]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert {engine["component"] for engine in engines} == COMPONENTS
    assert all(engine["bytes"] == Path(engine["path"]).stat().st_size for engine in engines)
    assert main(["engine", "list", "--folder", str(folder)]) == 0
    assert "scene_encoder" in capsys.readouterr().out


def test_an_empty_folder_is_no_error_and_tells_what_to_do(tmp_path, capsys) -> None:
    assert main(["engine", "list", "--folder", str(tmp_path)]) == 0
    assert "semla engine build" in capsys.readouterr().out


def test_check_passes_on_what_build_made_and_fails_on_damage(folder, tiny_model_folder, capsys) -> None:
    command = ["engine", "check", "--folder", str(folder), "--model", str(tiny_model_folder), "--device", "cpu"]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["damaged"] == answer["wrong"] == []
    assert {row["component"] for row in answer["components"]} == COMPONENTS
    victim = next(folder.glob("scene_encoder*.engine"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert main(command) == 2
    assert f"damaged: {victim.name}: its content has changed" in capsys.readouterr().out


def test_clean_removes_only_what_is_damaged_unless_all_is_asked_for(folder, capsys) -> None:
    victim = next(folder.glob("scene_encoder*.engine"))
    victim.write_bytes(b"")
    command = ["engine", "clean", "--folder", str(folder)]
    assert main([*command, "--dry-run"]) == 0
    assert victim.exists()
    assert main([*command, "--json"]) == 0
    capsys_text = capsys.readouterr().out
    assert "engines would be removed: 1" in capsys_text
    assert not victim.exists()
    assert len(list(folder.glob("*.engine"))) == len(COMPONENTS) - 1
    assert main([*command, "--all"]) == 0
    assert list(folder.iterdir()) == []


def test_engines_of_another_version_are_cleaned(folder, monkeypatch) -> None:
    monkeypatch.setattr("semla_ros.engines.export.export_version", lambda: "torch 9.9 revision 9")
    assert main(["engine", "clean", "--folder", str(folder)]) == 0
    assert list(folder.glob("*.engine")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--model", "no-such-model"], "no-such-model"),
        (["build", "--device", "tpu"], "tpu"),
        (["check", "--device", "cuda:99"], "cuda:99"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message: str, tiny_model_folder, tmp_path, capsys) -> None:
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(tiny_model_folder)]
    assert main(["engine", *arguments, "--folder", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_openvino_that_is_missing_is_refused_in_one_line(tiny_model_folder, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    command = ["engine", "build", "--runtime", "openvino", "--device", "cpu", "--model", str(tiny_model_folder)]
    assert main([*command, "--folder", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "pip install 'semla_ros[openvino]'" in lines[0]


def test_where_no_runtime_is_installed_nothing_is_built_or_compared_in_silence(
    folder, tiny_model_folder, tmp_path, capsys, monkeypatch
) -> None:
    model = ["--device", "cpu", "--model", str(tiny_model_folder)]
    assert main(["engine", "check", *model, "--folder", str(folder), "--model", "semla-tiny"]) == 0
    assert "nothing was compared with torch: no engine is of semla-tiny" in capsys.readouterr().out
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["engine", "build", *model, "--folder", str(tmp_path)]) == 2
    assert main(["engine", "check", *model, "--folder", str(folder)]) == 0
    said = capsys.readouterr()
    for extra in ("onnx", "openvino"):
        assert f"pip install 'semla_ros[{extra}]'" in said.err
        assert f"pip install 'semla_ros[{extra}]'" in said.out


def test_openvino_uses_the_graphs_that_onnx_runtime_has(folder, tiny_model_folder, capsys) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO: the extra openvino")
    command = ["engine", "build", "--runtime", "openvino", "--device", "cpu", "--model", str(tiny_model_folder)]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main([*command, "--folder", str(folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["component"] for row in answer["components"] if row["runtime"] == "openvino"} == COMPONENTS
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_tensorrt_that_cannot_run_here_is_refused_in_one_line(tiny_model_folder, tmp_path, capsys) -> None:
    command = ["engine", "build", "--runtime", "tensorrt", "--device", "cpu", "--model", str(tiny_model_folder)]
    assert main([*command, "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "TensorRT" in error or "CUDA" in error
    assert len(error.strip().splitlines()) == 1


def test_the_help_of_every_action_has_an_example(capsys) -> None:
    for action in ("build", "list", "check", "clean"):
        with pytest.raises(SystemExit) as ended:
            main(["engine", action, "--help"])
        assert ended.value.code == 0
        assert f"example: semla engine {action}" in capsys.readouterr().out
