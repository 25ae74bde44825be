"""docs/published_weights.md from the first command to the last, and `hf://` names wherever something is named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from loopback_hub import COMMIT, Hub, serving
from PIL import Image
from published_layout import make_the_encoder_small, publish_all

from semla_ros import Library, Pipeline
from semla_ros.cli import main
from semla_ros.config import SemlaConfig
from semla_ros.errors import ConfigError, FetchError, LibraryError
from semla_ros.hub.downloads import hub_folder
from semla_ros.library.finding import find_library
from semla_ros.library.importing import import_library
from semla_ros.library.manifest import ModelReference, read_manifest
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.resources import find_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "published_weights.md"
IMAGE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that every command takes for the public one, and an empty cache."""
    with serving() as hub:
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE"):
            monkeypatch.setattr(f"{constants}.{name}", str(tmp_path / "hf" / name.lower()))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1,localhost")
        monkeypatch.setenv("HF_TOKEN", hub.allowed_token)
        monkeypatch.delenv("SEMLA_MODEL_DIR", raising=False)
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture
def full_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path, tiny_library_folder: Path) -> Hub:
    publish_all(hub, tiny_model_folder, tiny_library_folder)
    make_the_encoder_small(monkeypatch)
    return hub


@pytest.fixture
def stated_library(library_copy: Path) -> Path:
    """A library that says what it is for, as one that is published must."""
    import_library(
        library_copy,
        base=ModelReference(id="semla-tiny-random"),
        encoder=ModelReference(id="semla-tiny-random/scene"),
        licence="Apache-2.0",
    )
    return library_copy


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def node_settings(command: list[str]) -> SemlaConfig:
    """What the parameters on a node's command line set."""
    given = dict(item.split(":=") for item in command if ":=" in item)
    return SemlaConfig(**{name: yaml.safe_load(value) for name, value in given.items()})


def test_the_page_runs_from_the_first_command_to_the_last(
    full_hub: Hub, tmp_path: Path, library_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(library_copy, tmp_path / "my-adapters")
    Image.fromarray(IMAGE).save("photo.jpg")
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.fromarray(np.roll(IMAGE, index * 8)).save(tmp_path / "images" / f"{index}.png")
    assert main(["record-images", "images", "--out", "bag"]) == 0
    shutil.copy(next((tmp_path / "bag").glob("*.mcap")), "drive.mcap")
    ran = []
    for command in commands():
        if command[0] == "perception":
            pipeline = PerceptionPipeline.load(node_settings(command))
            assert pipeline.library.names == ("day", "fog", "night", "snow")
            pipeline.close()
        else:
            assert main(command[1:]) == 0, f"{shlex.join(command)}: {capsys.readouterr().err}"
        ran.append(command[0])
    assert ran.count("semla") >= 10
    assert ran.count("perception") == 1
    out = capsys.readouterr().out
    home = tmp_path / "hf" / "hf_assets_cache" / "semla_ros" / "adapters" / "catseg-l"
    assert f"library of 4 adapters for catseg-l in {home}" in out.replace("\n", "")
    assert (tmp_path / "out" / "photo" / "photo_mask.png").is_file()
    assert (tmp_path / "out" / "why" / "photo_why.html").is_file()
    assert json.loads((tmp_path / "out" / "replay" / "summary.json").read_text())["frames"] == 3
    assert "README.md" in full_hub.repositories["models/me/my-adapters"]


def test_what_was_fetched_into_a_folder_is_found_by_its_name(full_hub: Hub, tmp_path: Path) -> None:
    dest = tmp_path / "weights"
    assert main(["fetch", "all", "--dest", str(dest)]) == 1  # catseg-b is not there; the others are
    assert main(["fetch", "catseg-l", "semla-adapters", "ViT-L-14-openai", "--dest", str(dest)]) == 0
    full_hub.repositories.clear()
    assert find_model("catseg-l", str(dest)) == dest / "catseg-l"
    assert find_library(model="catseg-l", model_dir=str(dest)) == dest / "adapters" / "catseg-l"
    result = Pipeline("catseg-l", model_dir=str(dest), classes=["road", "sky"], device="cpu", threads=1)(IMAGE)
    assert set(result.distances) == {"day", "fog", "night", "snow"}


def test_the_cache_of_a_fetch_is_the_hubs_own(full_hub: Hub, tmp_path: Path) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    assert main(["fetch", "catseg-l"]) == 0
    scanned = scan_cache_dir(tmp_path / "hf" / "hf_hub_cache")
    assert not scanned.warnings
    assert [(repo.repo_id, repo.repo_type) for repo in scanned.repos] == [("hamacojr/CAT-Seg-weights", "space")]
    found = try_to_load_from_cache("hamacojr/CAT-Seg-weights", "model_large.pth", repo_type="space")
    assert str(find_model("catseg-l")) == found
    bodies = [path for method, path, _ in full_hub.requests if method == "GET" and "/resolve/" in path]
    assert len(bodies) == 1  # the hub's own library did not download it once more


def test_a_damaged_file_in_the_cache_is_fetched_again(full_hub: Hub) -> None:
    assert main(["fetch", "catseg-l"]) == 0
    blob = find_model("catseg-l").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + b"x")
    assert main(["fetch", "catseg-l"]) == 0
    assert find_model("catseg-l").read_bytes() == content


def test_a_library_goes_to_the_hub_and_comes_back(
    hub: Hub, stated_library: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    mine = Library(stated_library)
    planned = mine.push("me/mine", dry_run=True)
    assert hub.requests == []
    sent = mine.push("me/mine")
    assert sent == planned
    there = hub.repositories["models/me/mine"]
    assert {path: there[path] for path in sent.files} == {path: file.read_bytes() for path, file in sent.files.items()}
    front = yaml.safe_load(there["README.md"].decode().split("---\n")[1])
    assert front["library_name"] == "semla_ros"
    assert front["license"] == "apache-2.0"
    assert "lora" in front["tags"]
    assert "| night |" in there["README.md"].decode()

    for name, content in {path.name: path.read_bytes() for path in tiny_model_folder.iterdir()}.items():
        hub.put("me/model", name, content)
    pipeline = Pipeline("hf://me/model", library="hf://me/mine", device="cpu", threads=1)
    assert pipeline.library.names == mine.names
    hub.repositories.clear()  # as if the network were gone
    requests = len(hub.requests)
    assert Library("hf://me/mine").names == mine.names
    assert find_library(Path("hf://me/mine")) == Library("hf://me/mine").folder  # a Path has lost a slash
    assert len(hub.requests) == requests
    assert main(["library", "list", "hf://me/mine"]) == 0


def test_a_newer_state_comes_only_when_it_is_fetched(hub: Hub) -> None:
    hub.put("me/notes", "library.yaml", b"format: 1\n")
    folder = hub_folder("hf://me/notes")
    hub.put("me/notes", "library.yaml", b"format: 1\nnote: newer\n")
    hub.commit = COMMIT[::-1]
    assert hub_folder("hf://me/notes") == folder
    assert main(["fetch", "hf://me/notes"]) == 0
    assert read_manifest(hub_folder("hf://me/notes")).note == "newer"
    assert read_manifest(folder).note == ""


def test_an_interrupted_repository_is_not_taken_for_a_whole_one(hub: Hub, stated_library: Path) -> None:
    Library(stated_library).push("me/mine")
    whole = dict(hub.repositories["models/me/mine"])
    original = hub.find

    def broken(path: str) -> bytes | None:
        return None if path.endswith("snow/adapter_model.safetensors") else original(path)

    hub.find = broken  # type: ignore[method-assign]
    with pytest.raises(FetchError, match="me/mine"):
        find_library("hf://me/mine")
    hub.find = original  # type: ignore[method-assign]
    assert len(Library("hf://me/mine").names) == 4
    assert hub.repositories["models/me/mine"] == whole


def test_an_archive_on_the_hub_is_a_library(full_hub: Hub) -> None:
    library = Library("hf://rezaqorbani/SemLA")
    assert library.names == ("day", "fog", "night", "snow")
    assert find_library("hf://rezaqorbani/SemLA/loradb.zip") == library.folder


@pytest.mark.parametrize("name", ["hf://", "hf://owner", "hf://a/b/../../c", "hf://owner/repo@"])
def test_what_is_no_name_on_the_hub_is_said(name: str) -> None:
    with pytest.raises(ConfigError, match="hf://owner/repo"):
        find_library(name)


@pytest.mark.parametrize("arguments", [["segment", "x.png", "--out"], ["library", "import"]])
def test_nothing_is_written_to_a_folder_called_hf(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "hf://me/mine"]) == 2
    assert "semla library push" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_a_sound_library_that_says_what_it_is_for_is_published(
    hub: Hub, stated_library: Path, tiny_library_folder: Path
) -> None:
    with pytest.raises(LibraryError, match="semla library import"):
        Library(tiny_library_folder).push("me/mine")
    with pytest.raises(LibraryError, match="written owner/repo"):
        Library(stated_library).push("mine")
    weights = stated_library / "fog" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(LibraryError, match="'fog'"):
        Library(stated_library).push("me/mine")
    assert hub.requests == []


def test_without_the_right_to_write_one_line_says_so(
    hub: Hub, stated_library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert main(["library", "push", str(stated_library), "me/mine"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "HF_TOKEN must allow to write" in err
    assert hub.repositories == {}
