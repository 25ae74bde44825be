"""`semla library` as a user types it: on published folders, on broken ones, interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from semla_ros.adaptation.retrieval import Retriever
from semla_ros.adaptation.scene_embedding import SceneEncoder
from semla_ros.adaptation.scene_image import ScenePreprocessing
from semla_ros.cli import main
from semla_ros.errors import DatasetError, LibraryError
from semla_ros.lab.training.library_index import index_adapter
from semla_ros.lab.training.strange_images import PATTERNS
from semla_ros.lab.world.domains import domain_named, split_seed
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.importing import add_adapter, write_manifest
from semla_ros.library.manifest import LibraryManifest, ModelReference, read_manifest

DIM = 6
NAMES = ("fog", "night", "snow")


def write_adapter(folder: Path, *, seed: int = 0, dim: int = DIM) -> Path:
    """An adapter of two layers in the published layout."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path in ("tower.q", "tower.v"):
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(2, 8, generator=generator)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(8, 2, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["tower.q", "tower.v"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    centroid = np.full((1, dim), float(seed), np.float32)
    np.savez(folder / f"{folder.name}_statistics.npz", train_average_embedding=centroid)
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_adapter(tmp_path / "loradb" / name, seed=seed)
    return tmp_path / "loradb"


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def semla(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["library", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a refused command says."""
    status, out, err = semla(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1, err
    return err


# import


def test_import_writes_digests_and_keeps_the_adapters_as_they_are(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(library)
    status, out, _ = semla(capsys, "import", library, "--base-id", "catseg-l", "--encoder", "ViT-L-14/openai",
                           "--licence", "MIT", "--note", "as published")  # fmt: skip
    assert status == 0
    assert "3 adapters" in out
    after = state_of(library)
    after.pop("library.yaml")
    assert after == before
    manifest = read_manifest(library)
    assert (manifest.base.id, manifest.encoder.id, manifest.note) == ("catseg-l", "ViT-L-14/openai", "as published")
    assert set(manifest.adapters) == set(NAMES)
    assert set(manifest.adapters["fog"].sha256) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "fog_statistics.npz",
    }
    assert manifest.adapters["fog"].licence == "MIT"
    assert AdapterLibrary.load(library, encoder_id="ViT-L-14/openai").problems == {}


def test_import_again_takes_in_changes_and_keeps_what_is_known(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    semla(capsys, "import", library, "--encoder", "ViT-L-14/openai")
    shutil.rmtree(library / "fog")
    write_adapter(library / "fog", seed=9)
    write_adapter(library / "rain", seed=4)
    assert "SHA-256 differs" in AdapterLibrary.load(library).problems["fog"]
    assert semla(capsys, "import", library)[0] == 0
    assert read_manifest(library).encoder.id == "ViT-L-14/openai"
    assert AdapterLibrary.load(library).names == (*NAMES, "rain")


def break_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:300])


def break_values(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.tower.v.lora_B.weight"][3, 1] = torch.nan
    save_file(tensors, folder / "adapter_model.safetensors")


def break_centroid(folder: Path) -> None:
    np.savez(folder / f"{folder.name}_statistics.npz", train_average_embedding=np.array([{}], dtype=object))


def remove_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


BREAKS: list[tuple[Callable[[Path], None], str]] = [
    (break_weights, "truncated"),
    (break_values, "layer 'tower.v' has values that are not finite"),
    (break_centroid, "pickled content is refused"),
    (remove_config, "adapter_config.json: the file is missing"),
]


@pytest.mark.parametrize(("damage", "reason"), BREAKS)
def test_a_broken_adapter_is_named_and_nothing_is_written(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], reason: str
) -> None:
    damage(library / "night")
    before = state_of(tmp_path)
    for arguments in (("import", library), ("add", library / "night", "--library", tmp_path / "other")):
        line = refused(capsys, *arguments)
        assert "adapter 'night'" in line
        assert reason in line
        assert state_of(tmp_path) == before
    assert not (tmp_path / "other").exists()


def test_centroids_of_different_encoders_do_not_make_a_library(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(library / "rain", dim=5)
    assert "different scene encoders" in refused(capsys, "import", library)
    assert not (library / "library.yaml").exists()


@pytest.mark.parametrize("action", ["import", "list", "check"])
def test_a_missing_or_empty_library_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        assert str(folder) in refused(capsys, action, folder)


# list, check


def test_list_shows_a_row_for_each_adapter(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = semla(capsys, "list", library)
    assert status == 0
    for name in NAMES:
        assert name in out
    status, out, _ = semla(capsys, "list", library, "--json")
    summary = json.loads(out)
    assert [row["name"] for row in summary["adapters"]] == list(NAMES)
    assert summary["adapters"][0]["rank"] == 2
    assert summary["adapters"][0]["layers"] == 2
    assert summary["embedding_dim"] == DIM


def test_list_shows_what_is_broken(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    break_weights(library / "night")
    status, out, _ = semla(capsys, "list", library)
    assert status == 0
    assert "broken: adapter 'night'" in out
    _, out, _ = semla(capsys, "list", library, "--json")
    assert "truncated" in json.loads(out)["adapters"][-1]["problem"]


def test_check_is_content_with_a_sound_library(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = semla(capsys, "check", library)
    assert (status, out) == (0, f"{library}: 3 adapters sound, 0 broken\n")


@pytest.mark.parametrize(("damage", "reason"), BREAKS)
def test_check_fails_on_a_broken_adapter(
    library: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], reason: str
) -> None:
    damage(library / "night")
    status, out, _ = semla(capsys, "check", library)
    assert status == 2
    assert f"broken: adapter 'night'" in out  # noqa: F541
    assert reason in out
    assert "2 adapters sound, 1 broken" in out


def test_check_holds_a_library_to_the_encoder(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    semla(capsys, "import", library, "--encoder", "ViT-L-14/openai")
    assert semla(capsys, "check", library, "--encoder", "ViT-L-14/openai")[0] == 0
    assert "scene encoder" in refused(capsys, "check", library, "--encoder", "semla-tiny-scene")


def test_check_against_a_model_names_the_module_that_it_lacks(
    library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from semla_ros.commands import library as command

    base = command._Base("tiny", {"tower.q": (8, 8)}, lambda: "0" * 64)
    monkeypatch.setattr(command, "_base_model", lambda _: base)
    assert "module 'tower.v'" in refused(capsys, "check", library, "--model", "tiny")


def test_an_unknown_model_is_named(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no-such-model" in refused(capsys, "check", library, "--model", "no-such-model")


# add


def test_add_copies_an_adapter_whole(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (library / "fog" / "CARD.md").write_text("trained on fog")
    (library / "fog" / "optimizer.bin").write_bytes(b"not needed")
    target = tmp_path / "mine"
    assert semla(capsys, "add", library / "fog", "--library", target)[0] == 0
    assert semla(capsys, "add", library / "fog", "--library", target, "--name", "mist")[0] == 0
    assert sorted(state_of(target)) == [
        *(f"fog/{name}" for name in ("CARD.md", "adapter_config.json", "adapter_model.safetensors")),
        "fog/fog_statistics.npz",
        "library.yaml",
        *(f"mist/{name}" for name in ("CARD.md", "adapter_config.json", "adapter_model.safetensors")),
        "mist/mist_statistics.npz",
    ]
    assert (
        "without digests, so that a small damage cannot be seen: fog, night, snow" in semla(capsys, "list", library)[1]
    )
    added = AdapterLibrary.load(target)
    assert added.names == ("fog", "mist")
    assert added.without_digest == ()


def test_an_added_adapter_joins_the_manifest_with_what_its_origin_knows(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    semla(capsys, "import", library, "--licence", "MIT", "--base-id", "catseg-l")
    target = tmp_path / "mine"
    semla(capsys, "add", library / "fog", "--library", target)
    assert read_manifest(target).base.id == "catseg-l"
    semla(capsys, "add", library / "snow", "--library", target)
    manifest = read_manifest(target)
    assert manifest.adapters["snow"].licence == "MIT"
    assert len(manifest.adapters["snow"].sha256) == 3
    assert AdapterLibrary.load(target).problems == {}


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "..", "a\\b"])
def test_a_name_that_leaves_the_library_is_refused(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    before = state_of(tmp_path)
    line = refused(capsys, "add", library / "fog", "--library", tmp_path / "mine", "--name", name)
    assert "plain folder name" in line
    assert state_of(tmp_path) == before


def test_an_adapter_of_that_name_is_not_replaced(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(library)
    assert "exists already" in refused(capsys, "add", library / "fog", "--library", library, "--name", "night")
    assert state_of(library) == before


def test_adapters_for_different_base_models_or_encoders_do_not_mix(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine"
    write_adapter(target / "rain")
    write_manifest(target, LibraryManifest(base=ModelReference(id="catseg-b")))
    write_manifest(library, LibraryManifest(base=ModelReference(id="catseg-l")))
    assert "base model" in refused(capsys, "add", library / "fog", "--library", target)
    (library / "library.yaml").unlink()
    write_adapter(tmp_path / "dusk", dim=5)
    assert "centroid has 5 values" in refused(capsys, "add", tmp_path / "dusk", "--library", target)
    assert sorted(path.name for path in target.iterdir()) == ["library.yaml", "rain"]


# index


STRANGE = PATTERNS + 50  # what 50 images are held against


class MeanColour(torch.nn.Module):
    """A scene encoder that can be followed by hand: mean and deviation of each channel."""

    def __init__(self, fails_after: int = 10**9) -> None:
        super().__init__()
        self.images = 0
        self.fails_after = fails_after

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        if self.images > self.fails_after:
            raise KeyboardInterrupt
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)


def encoder(tower: MeanColour | None = None, id: str = "colours") -> SceneEncoder:
    return SceneEncoder(tower or MeanColour(), ScenePreprocessing(height=8, width=8), id=id, dim=DIM, sha256="c" * 64)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(50):
        path = tmp_path / "images" / f"day-{index % 3}" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 255, (12, 16, 3)) * rng.uniform(0.2, 1.0)
        assert cv2.imwrite(str(path), picture.astype(np.uint8))
    return tmp_path / "images"


def test_index_writes_mean_and_spread_of_all_images(library: Path, images: Path) -> None:
    statistics = index_adapter(library / "fog", images, encoder(), batch_size=7)
    assert statistics.images == 50
    loaded = AdapterLibrary.load(library)
    np.testing.assert_array_equal(loaded.centroids[0], statistics.centroid)
    assert loaded.spread[0] == pytest.approx(statistics.spread_p95)
    assert loaded.entry("fog").images == 50
    assert list(loaded.is_spread_measured) == [True] + [False] * (len(loaded.names) - 1)
    np.testing.assert_allclose(loaded.spread[1:], loaded.spread[0])
    assert (len(statistics.known), len(statistics.strange)) == (50, STRANGE)
    assert not list((library / "fog").glob(".*"))
    assert Retriever(loaded).retrieve(statistics.centroid).names[0] == "fog"


def test_index_puts_spread_and_digest_into_the_manifest(
    library: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    semla(capsys, "import", library)
    statistics = index_adapter(library / "fog", images, encoder())
    manifest = read_manifest(library)
    assert manifest.encoder == ModelReference(id="colours", sha256="c" * 64)
    assert manifest.adapters["fog"].spread_mean == pytest.approx(statistics.spread_mean)
    assert AdapterLibrary.load(library).problems == {}


def test_the_encoder_of_an_index_before_the_import_is_kept(
    library: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = index_adapter(library / "fog", images, encoder())
    assert read_manifest(library).encoder.id == "colours"
    assert AdapterLibrary.load(library).problems == {}
    with pytest.raises(LibraryError, match="one library takes one encoder"):
        index_adapter(library / "night", images, encoder(id="other colours"))
    semla(capsys, "import", library)
    manifest = read_manifest(library)
    assert manifest.encoder == ModelReference(id="colours", sha256="c" * 64)
    assert manifest.adapters["fog"].spread_p95 == pytest.approx(statistics.spread_p95)
    assert set(manifest.adapters) == set(AdapterLibrary.load(library).names)


def test_an_image_that_cannot_be_read_is_named_and_left_out(library: Path, images: Path) -> None:
    whole = index_adapter(library / "night", images, encoder())
    (images / "0-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (images / "z-empty.jpg").write_bytes(b"")
    told: list[str] = []
    statistics = index_adapter(library / "fog", images, encoder(), on_problem=lambda error: told.append(str(error)))
    assert ["0-broken.png" in told[0], "z-empty.jpg" in told[1]] == [True, True]
    assert statistics.images == whole.images
    np.testing.assert_array_equal(statistics.centroid, whole.centroid)


def test_an_index_of_images_none_of_which_can_be_read_says_why(library: Path, tmp_path: Path) -> None:
    before = state_of(library)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"a\.png"):
        index_adapter(library / "fog", tmp_path / "broken", encoder())
    after = state_of(library)
    assert {path: content for path, content in after.items() if not path.endswith(".index.part")} == before


def test_the_command_says_which_image_was_left_out_and_ends_with_status_1(
    library: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SceneEncoder, "load", lambda *_, **__: encoder())
    (images / "day-1" / "04.png").write_bytes(b"no image")
    status, out, err = semla(capsys, "index", library, "fog", "--images", images, "--encoder", "x")
    assert status == 1
    assert "centroid of 49 images" in out
    assert "left out: image" in err
    assert "04.png" in err


def test_an_interrupted_index_is_gone_on_with(library: Path, images: Path) -> None:
    before = (library / "fog" / "fog_statistics.npz").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        index_adapter(library / "fog", images, encoder(MeanColour(fails_after=30)), batch_size=4)
    assert (library / "fog" / "fog_statistics.npz").read_bytes() == before
    tower, steps = MeanColour(), []
    resumed = index_adapter(
        library / "fog",
        images,
        encoder(tower),
        batch_size=9,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert tower.images == 50 - 28 + STRANGE
    assert steps[0] == (28, 50)
    assert steps[-1] == (50, 50)
    whole = index_adapter(library / "night", images, encoder())
    np.testing.assert_array_equal(resumed.centroid, whole.centroid)
    assert resumed.spread_p95 == whole.spread_p95


def test_a_state_that_was_cut_off_loses_one_image_and_damaged_ones_are_made_again(library: Path, images: Path) -> None:
    whole = index_adapter(library / "night", images, encoder())
    with pytest.raises(KeyboardInterrupt):
        index_adapter(library / "fog", images, encoder(MeanColour(fails_after=30)), batch_size=4)
    state = library / "fog" / ".index.part"
    content = bytearray(state.read_bytes()[:-3])
    content[-2 * (64 + 4 * DIM + 4)] ^= 1
    state.write_bytes(content)
    tower = MeanColour()
    np.testing.assert_array_equal(index_adapter(library / "fog", images, encoder(tower)).centroid, whole.centroid)
    assert tower.images == 50 - 26 + STRANGE


def test_one_adapter_is_indexed_by_one_process_at_a_time_and_others_beside_it(library: Path, images: Path) -> None:
    write_manifest(library, LibraryManifest())

    def meanwhile(done: int, _: int) -> None:
        if done == 0:
            with pytest.raises(LibraryError, match="another process"):
                index_adapter(library / "fog", images, encoder())
            index_adapter(library / "night", images, encoder())

    index_adapter(library / "fog", images, encoder(), on_progress=meanwhile)
    assert set(read_manifest(library).adapters) == {"fog", "night"}


def test_an_index_does_not_go_on_with_that_of_another_encoder(library: Path, images: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        index_adapter(library / "fog", images, encoder(MeanColour(fails_after=30)), batch_size=4)
    tower = MeanColour()
    index_adapter(library / "fog", images, encoder(tower, id="other colours"))
    assert tower.images == 50 + STRANGE


def test_index_refuses_another_encoder_than_the_librarys(
    library: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SceneEncoder, "load", lambda *_, **__: encoder())
    semla(capsys, "import", library, "--encoder", "ViT-L-14/openai")
    line = refused(capsys, "index", library, "fog", "--images", images, "--encoder", "x")
    assert "one library takes one encoder" in line


def test_index_from_the_command_line(
    library: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SceneEncoder, "load", lambda *_, **__: encoder())
    status, out, err = semla(capsys, "index", library, "fog", "--images", images, "--encoder", "colours", "--json")
    assert json.loads(out)["count"] == 50
    assert err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # counts as a terminal
    status, out, err = semla(capsys, "index", library, "fog", "--images", images, "--encoder", "colours")
    assert status == 0
    assert "centroid of 50 images" in out
    assert "50/50" in err


def test_index_names_what_is_not_there(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such file" in refused(capsys, "index", library, "fog", "--images", tmp_path, "--encoder", "nothing")
    monkeypatch.setattr(SceneEncoder, "load", lambda *_, **__: encoder())
    assert "adapter 'mist'" in refused(capsys, "index", library, "mist", "--images", tmp_path, "--encoder", "x")
    assert "holds no image" in refused(
        capsys, "index", library, "fog", "--images", tmp_path / "loradb", "--encoder", "x"
    )


def test_add_leaves_no_trace_where_the_manifest_cannot_be_written(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "mine"
    write_adapter(target / "rain")
    write_manifest(target, LibraryManifest())
    before = state_of(target)
    monkeypatch.setattr("semla_ros.library.importing.write_manifest", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        add_adapter(target, library / "fog")
    assert state_of(target) == before
    assert sorted(path.name for path in target.iterdir()) == ["library.yaml", "rain"]


# show, diff, map, explain


def test_the_table_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = semla(capsys, "list")
    assert status == 0
    assert "…" not in out
    assert max(map(len, out.splitlines()[1:])) <= 80
    for words in ("adapter", "spread", "boulevard-clear-night", "7.63"):
        assert words in out


def test_one_adapter_is_shown_with_its_card_and_its_neighbours(
    capsys: pytest.CaptureFixture[str], library: Path
) -> None:
    status, out, _ = semla(capsys, "show", "harbour-dusk")
    assert status == 0
    for words in ("low-sun", "2.341068", "suburb-glare 11.5", "Apache-2.0", "this adapter alone"):
        assert words in out
    status, out, _ = semla(capsys, "show", "night", "--library", library, "--json")
    shown = json.loads(out)
    assert status == 0
    assert shown["rank"] == 2
    assert shown["card"] == ""
    assert list(shown["nearest_adapters"]) == ["fog", "snow"]
    assert shown["nearest_adapters"]["fog"] == pytest.approx(DIM**0.5)
    assert "did you mean 'night'" in refused(capsys, "show", "nigth", "--library", library)


def test_a_broken_adapter_is_not_shown_but_named(capsys: pytest.CaptureFixture[str], library: Path) -> None:
    (library / "fog" / "adapter_config.json").write_text("{")
    assert main(["library", "show", "fog", "--library", str(library)]) == 2
    assert "adapter 'fog' cannot be used" in capsys.readouterr().err


def test_what_two_libraries_differ_in_is_said_and_nothing_else(
    capsys: pytest.CaptureFixture[str], library: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(library, tmp_path / "other"))
    status, out, _ = semla(capsys, "diff", library, other)
    assert (status, "do not differ" in out) == (0, True)
    shutil.rmtree(other / "snow")
    write_adapter(other / "dusk", seed=7)
    shutil.rmtree(other / "night")
    write_adapter(other / "night", seed=4)
    (other / "library.yaml").write_text("retrieval: {temperature: 0.5}\nbase: {id: other}\n")
    status, out, _ = semla(capsys, "diff", library, other, "--json")
    rows = {(row["of"], row["what"]): (row["first"], row["second"]) for row in json.loads(out)}
    assert status == 1
    assert rows[("library", "base id")] == ("", "other")
    assert rows[("retrieval", "temperature")] == ("", "0.5")
    assert rows[("snow", "adapter")] == ("there", "missing")
    assert rows[("dusk", "adapter")] == ("missing", "there")
    assert rows[("night", "centroid")][1] == f"{3 * DIM**0.5:.3g} away"
    assert ("night", "weights") in rows
    assert not any(of == "fog" for of, _ in rows)
    assert semla(capsys, "diff", library, other)[0] == 1


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """One of a known domain, and one of nothing."""
    image = domain_named("harbour-dusk").scene(split_seed("test", 0)).render(128, 96).image
    stripes = np.zeros((96, 128, 3), np.uint8)
    stripes[:, ::8] = (255, 0, 255)
    paths = [tmp_path / "dusk.png", tmp_path / "stripes.png"]
    for path, pixels in zip(paths, (image, stripes), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_why_an_image_gets_its_adapters_is_said_and_drawn(
    capsys: pytest.CaptureFixture[str], photos: list[Path], tmp_path: Path
) -> None:
    status, out, _ = semla(capsys, "explain", *photos, "--out", tmp_path / "why")
    assert status == 0
    assert "dusk.png lies within the library; mix: harbour-dusk" in out
    assert "The nearest adapter is harbour-dusk: distance" in out
    assert "Nothing fades" in out
    assert "stripes.png lies outside the library" in out
    assert "fades to the base model" in out
    for name in ("dusk_why", "stripes_why"):
        assert Image.open(tmp_path / "why" / f"{name}.png").size == (1650, 550)
        assert "Every adapter" in (tmp_path / "why" / f"{name}.html").read_text()
    status, out, _ = semla(capsys, "explain", *photos, "--out", tmp_path / "why", "--json")
    known, strange = json.loads(out)
    assert [row["distance"] for row in known["adapters"]] == sorted(row["distance"] for row in known["adapters"])
    for answer in (known, strange):
        weights = sum(row["weight"] for row in answer["adapters"])
        by_distance = sum(row["weight_by_distance"] for row in answer["adapters"])
        assert weights + answer["base_weight"] == pytest.approx(1, abs=1e-4)
        assert by_distance + answer["base_weight_by_distance"] == pytest.approx(1, abs=1e-4)
    assert strange["out_of_library"]
    assert strange["base_weight"] > 0.5
    assert strange["nearest_strange_image"] < strange["nearest_known_scene"]


def test_one_bad_image_costs_its_own_place_on_the_map(
    capsys: pytest.CaptureFixture[str], photos: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    for action in (["map", "--images"], ["explain"]):
        status, out, err = semla(capsys, *action, bad, *photos, "--out", tmp_path / "out", "--json")
        assert status == 1
        assert err.count("\n") == 1
        assert "bad.png: not an image file" in err
        answer = json.loads(out)
        images = answer["images"] if action[0] == "map" else answer
        assert [item["image"] for item in images] == ["dusk.png", "stripes.png"]
    assert Image.open(tmp_path / "out" / "map.png").size == (1100, 880)
    page = (tmp_path / "out" / "map.html").read_text()
    for words in ("harbour-dusk", "dusk.png", "stripes.png", "outside"):
        assert words in page


def test_a_library_of_one_adapter_without_spread_has_a_map(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_adapter(tmp_path / "one" / "fog")
    status, out, _ = semla(capsys, "map", "--library", tmp_path / "one", "--out", tmp_path / "out")
    assert status == 0
    assert "fog: spread unknown" in out


def test_an_encoder_that_did_not_make_the_centroids_is_refused(
    capsys: pytest.CaptureFixture[str], library: Path, photos: list[Path], tmp_path: Path
) -> None:
    options = ("--library", library, "--out", tmp_path / "out")
    assert "names neither base model nor scene encoder" in refused(capsys, "map", "--images", photos[0], *options)
    assert "use the scene encoder" in refused(capsys, "map", "--images", photos[0], *options, "--model", "semla-tiny")
    (library / "library.yaml").write_text("encoder: {id: other}\n")
    assert "another scene encoder" in refused(capsys, "map", "--images", photos[0], *options, "--model", "semla-tiny")
