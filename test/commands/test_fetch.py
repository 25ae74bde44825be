"""`semla fetch` against a server on this machine that speaks the hub's interface."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback_hub import COMMIT, Handler, Hub, serving
from safetensors.torch import save

import semla_ros.hub.downloads as hub_module
from semla_ros.cli import main
from semla_ros.errors import FetchError
from semla_ros.file_integrity import file_sha256
from semla_ros.hub.downloads import fetch
from semla_ros.hub.published import PUBLISHED, PublishedItem
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.fetching import unpack_library
from semla_ros.library.manifest import read_manifest

BASE, ADAPTERS = PUBLISHED["catseg-l"], PUBLISHED["semla-adapters"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path / "hf" / name.lower()))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.delenv("SEMLA_MODEL_DIR", raising=False)
    with serving() as hub:
        yield hub


def publish(hub: Hub, item: PublishedItem, content: bytes) -> bytes:
    return hub.put(item.repository, item.files[0], content, item.kind)


@pytest.fixture
def weights() -> bytes:
    return np.random.default_rng(0).bytes(300_000)


def semla(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["fetch", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_model_is_put_where_it_is_looked_for(
    hub: Hub, weights: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, BASE, weights)
    status, out, _ = semla(capsys, "catseg-l", "--dest", tmp_path / "models", "--endpoint", hub.endpoint)
    assert status == 0
    assert hashlib.sha256(weights).hexdigest() in out
    folder = tmp_path / "models" / "catseg-l"
    assert (folder / "model_large.pth").read_bytes() == weights
    assert sorted(path.name for path in folder.iterdir()) == ["fetched.json", "model_large.pth"]
    record = json.loads((folder / "fetched.json").read_text())["model_large.pth"]
    assert record["commit"] == COMMIT
    assert record["sha256"] == hashlib.sha256(weights).hexdigest()


def test_content_of_another_host_is_fetched_without_the_token(
    hub: Hub, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    publish(hub, BASE, weights)
    hub.content["/content"] = weights
    hub.redirects = True
    (file,) = fetch(BASE, tmp_path, endpoint=hub.endpoint)
    assert file.path.read_bytes() == weights
    assert {token for path, token in hub.tokens if path == "/content"} == {None}


def test_what_is_there_needs_no_network(hub: Hub, weights: bytes, tmp_path: Path) -> None:
    publish(hub, BASE, weights)
    fetch(BASE, tmp_path, endpoint=hub.endpoint)
    hub.requests.clear()
    (again,) = fetch(BASE, tmp_path, endpoint="http://127.0.0.1:9")
    assert again.was_there
    assert hub.requests == []


def test_a_file_that_was_changed_is_fetched_again(hub: Hub, weights: bytes, tmp_path: Path) -> None:
    publish(hub, BASE, weights)
    (first,) = fetch(BASE, tmp_path, endpoint=hub.endpoint)
    first.path.write_bytes(weights[:-5])
    (second,) = fetch(BASE, tmp_path, endpoint=hub.endpoint)
    assert not second.was_there
    assert second.path.read_bytes() == weights


def test_an_interrupted_download_is_gone_on_with(
    hub: Hub, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, BASE, weights)
    hub.cut_after = 0
    original = Handler.answer

    def first_part_only(handler: Handler, has_body: bool) -> None:
        hub.cut_after = 0 if handler.headers.get("Range") else 100_000
        original(handler, has_body)

    monkeypatch.setattr(Handler, "answer", first_part_only)
    with pytest.raises(FetchError, match="goes on where it stopped"):
        fetch(BASE, tmp_path, endpoint=hub.endpoint)
    assert not (tmp_path / "catseg-l" / "model_large.pth").exists()
    monkeypatch.setattr(Handler, "answer", original)
    hub.cut_after = None
    hub.requests.clear()
    (file,) = fetch(BASE, tmp_path, endpoint=hub.endpoint)
    assert file.path.read_bytes() == weights
    ranges = [asked for method, _, asked in hub.requests if method == "GET"]
    assert ranges == ["bytes=100000-"]


def test_a_wrong_digest_leaves_nothing_behind(
    hub: Hub, weights: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, BASE, weights)
    hub.wrong_digest = True
    status, out, err = semla(capsys, "catseg-l", "--dest", tmp_path, "--endpoint", hub.endpoint)
    assert status == 2
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert hashlib.sha256(weights).hexdigest() in line
    assert "f" * 64 in line
    assert not (tmp_path / "catseg-l").exists()


def test_a_wrong_digest_leaves_the_file_that_was_there(hub: Hub, weights: bytes, tmp_path: Path) -> None:
    publish(hub, BASE, weights)
    (file,) = fetch(BASE, tmp_path, endpoint=hub.endpoint)
    publish(hub, BASE, weights[::-1])
    hub.wrong_digest = True
    with pytest.raises(FetchError, match="SHA-256"):
        fetch(BASE, tmp_path, revision="v1", endpoint=hub.endpoint)
    assert file.path.read_bytes() == weights


def test_another_revision_is_fetched_though_a_file_is_there(hub: Hub, weights: bytes, tmp_path: Path) -> None:
    publish(hub, BASE, weights)
    fetch(BASE, tmp_path, endpoint=hub.endpoint)
    (file,) = fetch(BASE, tmp_path, revision="v1", endpoint=hub.endpoint)
    assert not file.was_there
    assert json.loads((tmp_path / "catseg-l" / "fetched.json").read_text())["model_large.pth"]["revision"] == "v1"
    assert fetch(BASE, tmp_path, revision="v1", endpoint=hub.endpoint)[0].was_there


def test_small_files_are_held_to_gits_digest(tmp_path: Path) -> None:
    file = tmp_path / "small"
    file.write_bytes(b"hello\n")
    assert hub_module._has_digest(file, "", "ce013625030ba8dba906f756967f9e9ca394464a")  # git hash-object
    assert not hub_module._has_digest(file, "", "0" * 40)
    assert not hub_module._has_digest(file, file_sha256(file), "no digest at all")


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = semla(capsys, "catseg-l", "--dest", tmp_path, "--endpoint", "http://127.0.0.1:9")
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "http://127.0.0.1:9 cannot be reached" in err
    assert str(tmp_path / "catseg-l") in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_item_that_does_not_exist_is_named(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = semla(capsys, "catseg-l", "--dest", tmp_path, "--endpoint", hub.endpoint)
    assert status == 2
    assert "no such file" in err
    assert err.count("\n") == 1
    status, _, err = semla(capsys, "catseg-xxl", "--dest", tmp_path)
    assert status == 2
    assert "'catseg-xxl' is not a published item" in err
    status, _, err = semla(capsys)
    assert status == 2
    assert "say what to fetch" in err


def test_of_several_one_that_fails_is_named_and_the_others_are_fetched(
    hub: Hub, weights: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, BASE, weights)
    options = ["--dest", tmp_path, "--endpoint", hub.endpoint]
    status, out, err = semla(capsys, "catseg-b", "hf://nobody/nothing", "catseg-l", *options)
    assert status == 1
    assert [line.partition(":")[0] for line in err.splitlines()] == ["semla fetch"] * 2
    assert "nobody/nothing" in err
    assert (tmp_path / "catseg-l" / "model_large.pth").read_bytes() == weights
    assert "catseg-l: fetched" in out
    assert semla(capsys, "catseg-b", "hf://nobody/nothing", *options)[0] == 2


def test_list_shows_every_item(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = semla(capsys, "--list", "--json")
    assert status == 0
    assert [row["id"] for row in json.loads(out)] == list(PUBLISHED)
    assert semla(capsys, "--list")[0] == 0


# Adapters


def adapter_archive(
    root: str = "loradb/", names: tuple[str, ...] = ("acdc-fog", "acdc-night"), **extra: bytes
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            layer = "base_model.model.tower.q"
            tensors = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(8, 2)}
            statistics = io.BytesIO()
            np.savez(statistics, train_average_embedding=np.ones((1, 6), np.float32))
            settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
            archive.writestr(f"{root}{name}/adapter_config.json", json.dumps(settings))
            archive.writestr(f"{root}{name}/adapter_model.safetensors", save(tensors))
            archive.writestr(f"{root}{name}/{name}_statistics.npz", statistics.getvalue())
            archive.writestr(f"__MACOSX/{root}{name}/._adapter_config.json", b"\0")
        for path, content in extra.items():
            archive.writestr(path, content)
    return buffer.getvalue()


@pytest.mark.parametrize("root", ["loradb/", "", "a/b/"])
def test_the_published_adapters_become_a_library(
    hub: Hub, weights: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str], root: str
) -> None:
    publish(hub, BASE, weights)
    publish(hub, ADAPTERS, adapter_archive(root))
    options = ("--dest", tmp_path, "--endpoint", hub.endpoint)
    status, out, _ = semla(capsys, "semla-adapters", "catseg-l", *options)
    assert status == 0
    assert "library of 2 adapters" in out
    folder = tmp_path / "adapters" / "catseg-l"
    library = AdapterLibrary.load(folder, encoder_id="ViT-L-14/openai")
    assert library.names == ("acdc-fog", "acdc-night")
    assert library.problems == {}
    assert read_manifest(folder).base.sha256 == hashlib.sha256(weights).hexdigest()
    status, out, _ = semla(capsys, "semla-adapters", *options, "--json")
    assert json.loads(out)[0]["files"][0]["was_there"]


def test_adapters_without_centroids_are_unpacked_and_what_they_lack_is_said(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = io.BytesIO(adapter_archive())
    stripped = io.BytesIO()
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(stripped, "w") as archive:
        for name in source.namelist():
            if not name.endswith(".npz"):
                archive.writestr(name, source.read(name))
    publish(hub, ADAPTERS, stripped.getvalue())
    status, out, _ = semla(capsys, "semla-adapters", "--dest", tmp_path, "--endpoint", hub.endpoint)
    assert status == 0
    assert "not yet a library" in out
    assert "acdc-fog_statistics.npz" in out


def zip_of(tmp_path: Path, **members: bytes) -> Path:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"../../evil/..": b"", "x/../adapter_config.json": b"{}"}, "leave the library"),
        ({".ssh/adapter_config.json": b"{}"}, "leave the library"),
        ({"readme.txt": b"nothing"}, "no folder in it has"),
        ({"a/fog/adapter_config.json": b"{}", "b/fog/adapter_config.json": b"{}"}, "the same name"),
    ],
)
def test_an_archive_cannot_write_outside_the_library(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    folder = tmp_path / "deep" / "library"
    folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    archive = zip_of(tmp_path, **members)
    with pytest.raises(FetchError, match=reason):
        unpack_library(archive, folder)
    assert sorted(path for path in tmp_path.rglob("*") if path != archive) == before


def test_a_damaged_archive_writes_nothing(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    archive.write_bytes(adapter_archive()[:-40])
    (tmp_path / "library").mkdir()
    with pytest.raises(FetchError, match="cannot be unpacked"):
        unpack_library(archive, tmp_path / "library")
    assert list((tmp_path / "library").iterdir()) == []
