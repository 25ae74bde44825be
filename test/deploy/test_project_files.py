"""The files that a forge and its helpers read are what they take, and name what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
LICENCE = "Apache-2.0"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHECKED = [
    *((path, "vendor.github-workflows") for path in WORKFLOWS),
    *((path, "vendor.github-issue-forms") for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))),
    (ROOT / ".github" / "dependabot.yml", "vendor.dependabot"),
    (ROOT / "CITATION.cff", "vendor.citation-file-format"),
]


@pytest.mark.parametrize(("path", "schema"), CHECKED, ids=lambda item: getattr(item, "name", ""))
def test_a_file_fits_its_schema(path: Path, schema: str) -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    if not program.is_file():
        pytest.skip("needs check-jsonschema: the extra dev")
    command = [str(program), "--builtin-schema", schema, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def steps() -> list[str]:
    jobs = [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()]
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_the_steps_are_valid_shell_and_call_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert len(steps()) > 3
    for step in steps():
        source = re.sub(r"\$\{\{.*?\}\}", "value", step)
        assert subprocess.run(["bash", "-n"], input=source, text=True, check=False).returncode == 0, step
        assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in re.findall(r"\bmake (\w+)", step))
        assert all((ROOT / name).is_file() for name in re.findall(r"^(\.ci/\w+|tools/[\w-]+)", step))


def test_each_python_that_has_a_lock_and_ros_as_wheels_is_tested() -> None:
    (tests,) = (yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]["tests"] for path in WORKFLOWS)
    locks = {path.stem.removeprefix("python") for path in (ROOT / "requirements" / "locks").glob("*.txt")}
    assert set(tests["strategy"]["matrix"]["python"]) == locks - {"3.14"}


def test_the_hooks_are_programs_of_the_virtual_environment() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hooks = {hook["id"]: hook["entry"] for repo in yaml.safe_load(text)["repos"] for hook in repo["hooks"]}
    programs = {entry.split()[0] for entry in hooks.values() if entry.startswith(".venv/bin/")}
    assert {Path(program).name for program in programs} == {"ruff", "mypy"}
    assert all(shutil.which(Path(program).name, path=str(Path(sys.executable).parent)) for program in programs)


def test_every_page_is_in_the_menu_of_the_site_and_the_build_counts_its_warnings() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = set(re.findall(r"([\w/-]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE))
    assert pages == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    (build,) = re.findall(r"mkdocs build (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert "--strict" in build
    assert not {"-q", "--quiet"} & set(build.split())  # quiet, mkdocs counts no warning, and strictness means nothing


def test_every_file_is_under_the_licence_of_the_package() -> None:
    """REUSE.toml says one licence for all, so its text is what LICENSES/ holds, and no file names another one."""
    text = (ROOT / "REUSE.toml").read_text(encoding="utf-8")
    assert re.findall(r'^(path|SPDX-License-Identifier) = "(.+)"$', text, re.MULTILINE) == [
        ("path", "**"),
        ("SPDX-License-Identifier", LICENCE),
    ]
    assert [path.name for path in (ROOT / "LICENSES").iterdir()] == [f"{LICENCE}.txt"]
    assert (ROOT / "LICENSES" / f"{LICENCE}.txt").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert f"license: {LICENCE}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'license="{LICENCE}"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f"<license>{LICENCE}</license>" in (ROOT / "package.xml").read_text(encoding="utf-8")
    command = [
        "git",
        "grep",
        "-lIE",
        "SPDX-License-Identifie[r]: *[A-Z]",
    ]  # [r]: reuse takes no search for a tag for one
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout == ""
