import dataclasses
import json
import os
import pathlib

import pytest

import semla_ros.engines.cache as cache_module
from semla_ros.engines.cache import EngineCache, EngineKey
from semla_ros.errors import EngineError
from semla_ros.resources import engine_folder

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
        plain = getattr(KEY, field.name)
        other = dataclasses.replace(KEY, **{field.name: plain + type(plain)(1)})
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


ABSURD = json.dumps({"key": dataclasses.asdict(KEY), "bytes": float("inf"), "sha256": ""})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": {"component": 1}}', "[" * 100_000, ABSURD])
def test_an_unreadable_description_counts_as_no_entry(tmp_path, text: str) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    path.with_suffix(".json").write_text(text)
    assert cache.find(KEY) is None
    assert cache.entries() == []


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    path.with_suffix(".json").unlink()
    os.mkfifo(path.with_suffix(".json"))
    assert cache.find(KEY) is None
    assert cache.entries() == []


@pytest.fixture
def read_only(monkeypatch):
    """Folders and files that may be read only, for a superuser as well."""

    def refuse(*_given, **_named) -> None:
        raise PermissionError(30, "Read-only file system")

    def switch() -> None:
        for name in ("unlink", "mkdir", "replace", "write_bytes", "write_text"):
            monkeypatch.setattr(pathlib.Path, name, refuse)

    return switch


@pytest.mark.parametrize("content", [b"plan", b"plaN", b"pla"])
def test_a_folder_that_may_only_be_read_gives_what_is_intact_and_keeps_the_rest(tmp_path, read_only, content) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    path.write_bytes(content)
    read_only()
    assert cache.find(KEY) == (path if content == b"plan" else None)
    cache.remove(KEY)
    assert path.read_bytes() == content
    with pytest.raises(EngineError, match="SEMLA_ENGINE_DIR"):
        cache.store(KEY, lambda file: file.write_bytes(b"plan"))


def test_a_file_that_cannot_be_read_counts_as_missing(tmp_path, monkeypatch) -> None:
    cache = EngineCache(tmp_path)
    cache.store(KEY, lambda file: file.write_bytes(b"plan"))

    def unreadable(path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("semla_ros.engines.cache.file_sha256", unreadable)
    assert cache.entries(verify=True)[0].problem == "it cannot be read (Permission denied)"
    assert cache.find(KEY) is None


@pytest.mark.parametrize("step", ["description", "file", "both"])
def test_a_file_that_another_process_removes_in_between_counts_as_missing(tmp_path, monkeypatch, step: str) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    plain = cache_module._damage

    def removed_in_between(entry):
        if step != "file":
            path.with_suffix(".json").unlink()
        if step != "description":
            path.unlink()
        return plain(entry)

    monkeypatch.setattr(cache_module, "_damage", removed_in_between)
    assert cache.find(KEY) == (path if step == "description" else None)


def test_an_entry_that_another_process_replaces_while_it_is_read_is_found_and_not_removed(
    tmp_path, monkeypatch
) -> None:
    cache = EngineCache(tmp_path)
    cache.store(KEY, lambda file: file.write_bytes(b"old plan"))
    plain = cache_module._damage
    is_replaced = []

    def replaced_in_between(entry, **named):
        if not is_replaced:
            is_replaced.append(True)
            cache.store(KEY, lambda file: file.write_bytes(b"new plan"))
        return plain(entry, **named)

    monkeypatch.setattr(cache_module, "_damage", replaced_in_between)
    path = cache.find(KEY)
    assert path is not None
    assert path.read_bytes() == b"new plan"


def test_an_entry_that_is_just_being_replaced_is_missing_and_the_new_one_survives(tmp_path, monkeypatch) -> None:
    """A reader that comes between the new file and its description."""
    cache = EngineCache(tmp_path)
    cache.store(KEY, lambda file: file.write_bytes(b"old plan"))
    plain = cache_module.write_atomically
    seen = []

    def read_before(path, text) -> None:
        seen.append(EngineCache(tmp_path).find(KEY))
        plain(path, text)

    monkeypatch.setattr(cache_module, "write_atomically", read_before)
    path = cache.store(KEY, lambda file: file.write_bytes(b"new plan"))
    assert seen == [None]
    assert cache.find(KEY) == path


def test_cleaning_removes_what_is_unwanted_and_what_builds_left(tmp_path) -> None:
    cache = EngineCache(tmp_path)
    newer = dataclasses.replace(KEY, runtime_version="11.0.0")
    for key in (KEY, newer):
        cache.store(key, lambda file: file.write_bytes(b"plan"))
    for name in (".left.engine.123.partial", "orphan.engine"):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (0, 0))
    removed = cache.clean(lambda entry: entry.key.runtime_version == "10.3.0")
    assert [entry.key for entry in removed] == [KEY]
    assert cache.find(newer) is not None
    left = sorted(path.suffix for path in tmp_path.iterdir())
    assert left == [".engine", ".json"]


def test_cleaning_leaves_what_another_process_is_writing(tmp_path) -> None:
    cache = EngineCache(tmp_path)

    def cleaned_meanwhile(file) -> None:
        file.write_bytes(b"plan")
        assert cache.clean(lambda _entry: True) == []

    path = cache.store(KEY, cleaned_meanwhile)
    assert cache.find(KEY) == path


def test_a_folder_that_may_only_be_read_cannot_be_cleaned_and_says_so(tmp_path, read_only) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    read_only()
    with pytest.raises(EngineError, match=r"cannot be cleaned .*Read-only file system"):
        cache.clean(lambda _entry: True)
    assert cache.find(KEY) == path


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="SEMLA_ENGINE_DIR"):
        EngineCache(tmp_path / "file").store(KEY, lambda file: file.write_bytes(b"plan"))


def test_the_folder_follows_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SEMLA_ENGINE_DIR", str(tmp_path))
    assert engine_folder() == tmp_path
    monkeypatch.delenv("SEMLA_ENGINE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_folder() == tmp_path / "semla_ros" / "engines"


def test_the_description_tells_everything_that_the_key_depends_on(tmp_path) -> None:
    cache = EngineCache(tmp_path)
    path = cache.store(KEY, lambda file: file.write_bytes(b"plan"))
    values = json.loads(path.with_suffix(".json").read_text())
    assert values["key"] == dataclasses.asdict(KEY)
    assert values["bytes"] == 4
