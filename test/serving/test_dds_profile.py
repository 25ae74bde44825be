"""The Fast DDS profile: when the shipped one is used, and room for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from semla_ros.errors import ConfigError
from semla_ros.serving.dds_profile import VARIABLES, profile_variables, shared_memory_problem


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without files of Fast DDS."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def profile(folder: Path, *segment_sizes: int) -> dict[str, str]:
    """Variables that name a profile with such segments."""
    sizes = "".join(f"<t><segment_size>{size}</segment_size></t>" for size in segment_sizes)
    path = folder / "profile.xml"
    path.write_text(f'<profiles xmlns="http://example.org">{sizes}</profiles>', encoding="utf-8")
    return {VARIABLES[0]: str(path)}


def test_the_shipped_profile_is_used_where_nothing_is_said(elsewhere: Path) -> None:
    for environment in ({}, {VARIABLES[0]: ""}, {"ROS_DOMAIN_ID": "3"}):
        found = profile_variables(environment)
        assert set(found) == set(VARIABLES)
        assert all(Path(path).name == "fastdds.xml" and Path(path).is_file() for path in found.values())


@pytest.mark.parametrize("variable", [*VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS"])
def test_what_is_said_stays(elsewhere: Path, variable: str) -> None:
    assert profile_variables({variable: "x"}) == {}


@pytest.mark.parametrize("name", ["DEFAULT_FASTRTPS_PROFILES.xml", "DEFAULT_FASTDDS_PROFILES.xml"])
def test_a_profile_in_the_working_directory_stays(elsewhere: Path, name: str) -> None:
    (elsewhere / name).touch()
    assert profile_variables({}) == {}


def test_a_choice_counts_before_what_is_said_and_must_be_there(elsewhere: Path) -> None:
    said = profile(elsewhere)
    path = said[VARIABLES[0]]
    assert profile_variables({VARIABLES[0]: "x"}, path) == dict.fromkeys(VARIABLES, path)
    assert profile_variables({}, "none") == {}
    with pytest.raises(ConfigError, match="dds_profile must be the path of a Fast DDS profile, 'none' or empty, got"):
        profile_variables({}, str(elsewhere / "nowhere.xml"))


def test_a_segment_that_does_not_fit_is_told_with_what_to_do(elsewhere: Path) -> None:
    assert shared_memory_problem(profile(elsewhere, 1 << 10), str(elsewhere)) == ""
    problem = shared_memory_problem(profile(elsewhere, 1 << 10, 1 << 60), str(elsewhere))
    assert "docker run --shm-size 512m" in problem
    assert f"asks for {1 << 40} MiB" in problem


@pytest.mark.parametrize("name", ["DEFAULT_FASTRTPS_PROFILES.xml", "DEFAULT_FASTDDS_PROFILES.xml"])
def test_so_is_one_of_a_profile_in_the_working_directory(elsewhere: Path, name: str) -> None:
    Path(profile(elsewhere, 1 << 60)[VARIABLES[0]]).rename(elsewhere / name)
    assert f"the Fast DDS profile {name} asks for" in shared_memory_problem({}, str(elsewhere))


def test_profiles_without_segments_and_files_that_are_none_are_no_problem(elsewhere: Path) -> None:
    (elsewhere / "broken.xml").write_text("<profiles", encoding="utf-8")
    for environment in (
        profile(elsewhere),
        {VARIABLES[1]: "/nowhere"},
        {VARIABLES[0]: str(elsewhere / "broken.xml")},
        {},
    ):
        assert shared_memory_problem(environment, str(elsewhere)) == ""
    assert shared_memory_problem(profile(elsewhere, 1 << 60), "/no/shared/memory") == ""
