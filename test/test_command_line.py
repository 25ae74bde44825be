"""The `semla` command around its subcommands: what cannot be written, who interrupts it, what is misspelt."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semla_ros.cli import COMMANDS, build_parser, main
from semla_ros.commands.options import Listed, output_file, output_folder, unique_stems
from semla_ros.errors import ConfigError
from semla_ros.interrupts import end_by_interrupts, raise_interrupts

OUTPUTS = {"--out", "--dest", "--html", "--markdown", "--work", "--model-out", "--library-out", "--log-dir"}
LISTINGS = (
    ["--help"],
    ["--version"],
    ["library", "list"],
    ["library", "--help"],
    ["fetch", "--list"],
    ["engine", "list"],
)


def actions_of(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        yield path, action
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from actions_of(sub, f"{path} {name}".strip())


EVERY_ACTION = list(actions_of(build_parser(*COMMANDS)))


@pytest.mark.parametrize("arguments", LISTINGS)
def test_a_full_disk_is_one_line_and_status_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("semla")
    assert lines[0].endswith("No space left on device")


@pytest.mark.parametrize("arguments", LISTINGS)
def test_a_reader_that_went_away_is_one_line_and_status_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].endswith("what reads the output has ended")


def test_the_interpreter_has_nothing_to_add() -> None:
    command = f"{sys.executable} -m semla_ros.cli library list --json"
    for line in (f"{command} > /dev/full", f"{command} >&-"):
        answer = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert "Traceback" not in answer.stderr
        assert "Exception" not in answer.stderr
        assert answer.returncode == (2 if "full" in line else 0), answer.stderr


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device", "out/x.png"), PermissionError(13, "no")]
)
def test_whatever_the_system_refuses_is_one_line(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("semla_ros.commands.library")

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(module, "run", fail)
    assert main(["library", "list"]) == 2
    expected = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    assert capsys.readouterr().err == f"semla library: {expected}\n"


INTERRUPTED_IMPORT = """
import os, signal, sys
from semla_ros import executables

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                signal.sigtimedwait([], 0.1)
            except KeyboardInterrupt:
                raise ImportError("as modules in C say it") from None

sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = {arguments!r}
sys.exit(executables.{name}())
"""


@pytest.mark.parametrize(
    ("name", "arguments", "module"),
    [
        ("perception", [], "semla_ros.cli"),
        ("perception", ["--help"], "argparse"),
        pytest.param("perception", [], "rclpy.node", marks=pytest.mark.ros),
        pytest.param("scene_camera", [], "semla_ros.lab.world.render", marks=pytest.mark.ros),
        ("semla", ["segment", "x.png"], "semla_ros.cli"),
        ("semla", ["segment", "x.png"], "rich.console"),
        ("semla", ["library", "list"], "semla_ros.commands.library"),
    ],
)
def test_an_interrupt_in_the_middle_of_any_import_ends_an_executable_without_a_word(
    name: str, arguments: list[str], module: str
) -> None:
    if name == "scene_camera" or module == "rclpy.node":
        pytest.importorskip("rclpy", reason="needs rclpy")
    code = INTERRUPTED_IMPORT.format(name=name, arguments=arguments, module=module)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stdout, answer.stderr) == (-signal.SIGINT, "", "")


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as behind nohup
    try:
        end_by_interrupts()
        raise_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_runs_can_finish_what_it_has_begun_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[object] = []
    module = importlib.import_module("semla_ros.commands.library")
    monkeypatch.setattr(module, "run", lambda _: seen.append(signal.getsignal(signal.SIGINT)) or 0)
    assert main(["library", "list"]) == 0
    with pytest.raises(SystemExit):
        main(["library", "--help"])
    assert [*seen, signal.getsignal(signal.SIGINT)] == [signal.default_int_handler] * 2


def test_an_interrupt_while_modules_load_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main(["library", "list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["segmnt", "x.png"], "there is no 'segmnt'; did you mean 'segment'?"),
        (["library", "lst"], "there is no 'lst'; did you mean 'list'?"),
        (["replay", "x", "--rate", "lives"], "there is no 'lives'; did you mean 'live'?"),
        (["library", "show", "harbor-dusk"], "did you mean 'harbour-dusk'?"),
        (["fetch", "catsegl"], "did you mean 'catseg-l'?"),
        (["replay", "--compare", "base", "bag"], "put files before it, or '--' between"),
    ],
)
def test_what_is_misspelt_gets_the_nearest(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["segment", "x.png", "--out", "{wrong}"],
        ["engine", "build", "--folder", "{wrong}", "--model", "not-looked-for"],
        ["evaluate", "--html", "{wrong}"],
        ["library", "add", "x", "--library", "{wrong}"],
        ["library", "explain", "x.png", "--out", "{wrong}"],
    ],
)
def test_an_output_is_refused_before_anything_else(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert main([item.format(wrong=file / "below") for item in arguments]) == 2
    assert capsys.readouterr().err.endswith(f"{file / 'below'} cannot be written: {file}: Not a directory\n")


def test_every_option_that_names_an_output_is_checked_before_the_work() -> None:
    found = set()
    for command, action in EVERY_ACTION:
        if OUTPUTS & set(action.option_strings):
            found |= OUTPUTS & set(action.option_strings)
            assert action.type in (output_folder, output_file), (command, action.option_strings)
            assert action.default is None or isinstance(action.default, str), (command, "argparse would not check it")
    assert found == OUTPUTS


def test_every_option_that_takes_names_reads_commas_and_spaces() -> None:
    for command, action in EVERY_ACTION:
        if action.option_strings and action.nargs in ("+", "*") and action.type is not Path:
            assert isinstance(action, Listed), (command, action.option_strings)
        assert "A,B" not in str(action.metavar), (command, action.option_strings)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ([], ["default"]),
        (["--names", "a,b"], ["a", "b"]),
        (["--names", "a", "b"], ["a", "b"]),
        (["--names", "a, b", "traffic sign,", "c"], ["a", "b", "traffic sign", "c"]),
        (["--names", "a", "--names", "b,c"], ["a", "b", "c"]),
    ],
)
def test_a_list_is_written_with_commas_spaces_or_both(line: list[str], names: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--names", action=Listed, default=["default"])
    parser.add_argument("--seeds", action=Listed, type=int, default=[])
    assert parser.parse_args(line).names == names
    assert parser.parse_args(["--seeds", "1,2", "3"]).seeds == [1, 2, 3]
    with pytest.raises(SystemExit):
        parser.parse_args(["--seeds", "1,x"])


@pytest.mark.parametrize("check", [output_folder, output_file])
def test_an_output_that_cannot_be_written_is_refused_and_one_that_can_leaves_no_trace(
    check: Any, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for wrong in (file / "below", Path("/proc/nothing/here"), Path("/dev/null/x")):
        with pytest.raises(ConfigError, match=f"{wrong} cannot be written"):
            check(str(wrong))
    assert check(str(tmp_path / "new" / "deep")) == tmp_path / "new" / "deep"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_no_folder_and_a_folder_no_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert output_file(str(file)) == file
    with pytest.raises(ConfigError, match="cannot be written"):
        output_folder(str(file))
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        output_file(str(tmp_path))
    assert output_file("/dev/full") == Path("/dev/full")


def test_outputs_of_equal_names_get_numbers() -> None:
    stems = unique_stems([Path("a/x.png"), Path("b/x.png"), Path("x-2.png")], lambda stem: [Path(f"{stem}_why.png")])
    assert stems == ["x", "x-3", "x-2"]


def test_every_help_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def helps() -> dict[str, str]:
        actions = [action for _, action in actions_of(build_parser(*COMMANDS))]
        groups = [action.choices for action in actions if isinstance(action, argparse._SubParsersAction)]
        return {parser.prog: parser.format_help() for parsers in groups for parser in parsers.values()}

    monkeypatch.setenv("COLUMNS", "80")
    assert [line for text in helps().values() for line in text.splitlines() if len(line) > 80] == []
    monkeypatch.setenv("COLUMNS", "200")
    view = helps()["semla view"]
    assert "live, in Foxglove or in Rerun.\n" in view
    assert "\n  semla view --rerun drive.rrd\n" in view


def test_completion_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(command in script for command in COMMANDS)
        assert "semla_ros.commands" not in script
    assert main(["completion", "bash"]) == 0
    assert "_shtab_semla_segment_pos_0_COMPGEN=_shtab_compgen_files" in capsys.readouterr().out
