import dataclasses
import json
import os

import pytest

from semla_ros.engines.cache import EngineCache, EngineKey, default_cache_folder, replace_bytes
from semla_ros.errors import EngineError

KEY = EngineKey(
    component="scene_encoder",
    model_digest="ab" * 32,
    runtime="tensorrt",
    runtime_version="10.3.0",
    device="Orin sm_87",
    precision="fp16",
    shapes="1-8x3x96x128",
)


def test_what_was_stored_is_found_under_its_key_only(tmp_path) -> None:
    cache = EngineCache(tmp_path / "engines")
    assert cache.find(KEY) is None
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    assert cache.find(KEY) == path
    assert path.read_bytes() == b"plan"
    for field in dataclasses.fields(EngineKey):
        other = dataclasses.replace(KEY, **{field.name: getattr(KEY, field.name) + "x"})
        assert cache.find(other) is None, field.name


def test_a_build_that_fails_or_is_cut_short_leaves_nothing(tmp_path) -> None:
    cache = EngineCache(tmp_path)

    def failing(file) -> None:
        file.write_bytes(b"half")
        raise EngineError("the GPU was lost")

    with pytest.raises(EngineError, match="lost"):
        cache.store(KEY, failing)
    assert cache.find(KEY) is None
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_entry_survives_a_failing_rebuild(tmp_path) -> None:
    cache = EngineCache(tmp_path)
    cache.store(KEY, lambda file: file.write_bytes(b"good"))

    def failing(file) -> None:
        raise EngineError("no memory")

    with pytest.raises(EngineError):
        cache.store(KEY, failing)
    assert cache.find(KEY).read_bytes() == b"good"


@pytest.mark.parametrize("content", [b"plaN", b"pla", b""])
def test_a_damaged_file_is_not_loaded_but_removed(tmp_path, content: bytes) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    path.write_bytes(content)
    assert cache.entries(verify=True)[0].problem
    assert cache.find(KEY) is None
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {"component": 1}}'])
def test_an_unreadable_description_counts_as_no_entry(tmp_path, text: str) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    path.with_suffix(".json").write_text(text)
    assert cache.find(KEY) is None
    assert cache.entries() == []


def test_cleaning_removes_what_is_unwanted_and_what_builds_left(tmp_path) -> None:
    cache = EngineCache(tmp_path)
    newer = dataclasses.replace(KEY, runtime_version="11.0.0")
    for key in (KEY, newer):
        cache.store(key, lambda file: file.write_bytes(b"plan"))
    (tmp_path / ".left.engine.123.partial").write_bytes(b"half")
    (tmp_path / "orphan.engine").write_bytes(b"no description")
    (tmp_path / "timing-10.3.0-Orin.cache").write_bytes(b"timing")
    removed = cache.clean(lambda entry: entry.key.runtime_version == "10.3.0")
    assert [entry.key for entry in removed] == [KEY]
    assert cache.find(newer) is not None
    left = sorted(path.suffix for path in tmp_path.iterdir())
    assert left == [".cache", ".engine", ".json"]


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="SEMLA_ENGINE_DIR"):
        EngineCache(tmp_path / "file").store(KEY, lambda file: file.write_bytes(b"plan"))


def test_the_folder_follows_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEMLA_ENGINE_DIR", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("SEMLA_ENGINE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "semla_ros" / "engines"


def test_the_description_tells_everything_that_the_key_depends_on(tmp_path) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    values = json.loads(path.with_suffix(".json").read_text())
    assert values["key"] == dataclasses.asdict(KEY)
    assert values["bytes"] == 4


def test_replacing_a_file_never_shows_a_part_of_it(tmp_path, monkeypatch) -> None:
    path = tmp_path / "timing.cache"
    replace_bytes(path, b"old")

    def full_disk(_descriptor) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        replace_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
