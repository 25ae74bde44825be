from __future__ import annotations

import contextlib
import gc
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_parts import (
    ADAPTERS,
    EMBEDDING_DIM,
    RANKS,
    tiny_adapter,
    tiny_centroid,
    tiny_model,
    write_adapter,
    write_library,
)

from semla_ros.config import DriftConfig, RetrievalConfig
from semla_ros.errors import AdapterError, LibraryError
from semla_ros.file_integrity import file_sha256
from semla_ros.library.adapter_files import AdapterReader
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.importing import change_manifest, import_library, write_manifest
from semla_ros.library.manifest import (
    BASE_STATISTICS_NAME,
    AdapterEntry,
    BaseDomain,
    LibraryManifest,
    ModelReference,
    read_manifest,
)
from semla_ros.segmentation.targets import lora_signature

TARGETS = lora_signature(tiny_model())
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_library(tmp_path / "library", tiny_model())


def load(folder: Path, **settings: object) -> AdapterLibrary:
    return AdapterLibrary.load(folder, targets=TARGETS, **settings)  # type: ignore[arg-type]


def change_settings(adapter: Path, **changes: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(adapter: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove tensors, named by the end of their key."""
    tensors = load_file(adapter / WEIGHTS)
    for end, value in changes.items():
        key = next((name for name in tensors if name.endswith(end)), end)
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, adapter / WEIGHTS)


def problem_of(folder: Path, name: str, **settings: object) -> str:
    """The reason why one adapter is left out; the others must serve."""
    library = load(folder, **settings)
    assert set(library.names) == set(ADAPTERS) - {name}
    assert len(library.centroids) == len(library.names)
    with pytest.raises(AdapterError) as raised:
        library.adapter(name)
    assert str(raised.value) == library.problems[name]
    assert f"adapter '{name}'" in library.problems[name]
    assert "\n" not in library.problems[name]
    return library.problems[name]


# Reading


def test_a_published_folder_set_loads_as_it_is(folder: Path) -> None:
    library = load(folder)
    assert library.names == ADAPTERS
    assert library.problems == {}
    assert library.centroids.dtype == np.float32
    np.testing.assert_array_equal(library.centroids, [tiny_centroid(index) for index in range(4)])
    assert not library.is_spread_measured.any()
    assert library.spread_source == "estimated"
    gaps = library.centroids[:, None] - library.centroids
    assert (library.spread >= np.linalg.norm(gaps, axis=-1).max()).all()
    assert library.manifest.retrieval is None


def test_matrices_come_as_they_were_written(folder: Path) -> None:
    library, model = load(folder), tiny_model()
    for index, name in enumerate(ADAPTERS):
        adapter = library.adapter(name)
        settings = library.files(name).settings
        assert (settings.rank, settings.alpha) == (RANKS[name], 4.0)
        assert adapter.scaling == 4.0 / RANKS[name]
        expected = tiny_adapter(model, RANKS[name], seed=100 + index)
        assert set(adapter.layers) == set(expected)
        for path, (a, b) in adapter.layers.items():
            assert torch.equal(a, expected[path][0])
            assert torch.equal(b, expected[path][1])


def test_target_modules_that_the_model_and_the_file_lack_are_ignored(folder: Path) -> None:
    listed = json.loads((folder / "fog" / "adapter_config.json").read_text())["target_modules"]
    change_settings(folder / "fog", target_modules=[*listed, "sem_seg_head.predictor.clip_model.visual.block.99"])
    assert load(folder).problems == {}


def test_scaling_follows_rslora_and_the_patterns_of_single_layers(folder: Path) -> None:
    path = sorted(TARGETS)[0]
    end = path.split(".", 1)[1]
    change_settings(folder / "fog", use_rslora=True, alpha_pattern={end: 12.0})
    adapter = load(folder).adapter("fog")
    plain = tiny_adapter(tiny_model(), RANKS["fog"], seed=101)
    assert adapter.scaling == pytest.approx(4.0 / RANKS["fog"] ** 0.5)
    torch.testing.assert_close(adapter.layers[path][0] * adapter.scaling, plain[path][0] * 12.0 / RANKS["fog"] ** 0.5)
    other = sorted(TARGETS)[-1]
    assert torch.equal(adapter.layers[other][0], plain[other][0])


def test_single_layers_may_have_another_rank(folder: Path) -> None:
    path = sorted(TARGETS)[0]
    outputs, inputs = TARGETS[path]
    generator = torch.Generator().manual_seed(5)
    a, b = torch.randn(7, inputs, generator=generator), torch.randn(outputs, 7, generator=generator)
    change_tensors(folder / "fog", **{f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b})
    assert "rank" in problem_of(folder, "fog")
    change_settings(folder / "fog", rank_pattern={path: 7})
    adapter = load(folder).adapter("fog")
    found_a, found_b = adapter.layers[path]
    torch.testing.assert_close(adapter.scaling * found_b @ found_a, 4.0 / 7 * b @ a)


def test_half_precision_files_are_read_as_stored(folder: Path) -> None:
    tensors = load_file(folder / "day" / WEIGHTS)
    save_file({key: value.half() for key, value in tensors.items()}, folder / "day" / WEIGHTS)
    a, _ = next(iter(load(folder).adapter("day").layers.values()))
    assert a.dtype == torch.float16


# Broken adapters are left out, the rest serves


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["head"]}, "whole modules"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"r": 0}, "rank must be a whole number"),
        ({"lora_alpha": "many"}, "alpha must be a finite number"),
        ({"rank_pattern": {"(a+)+$": 3}}, "names modules by"),
    ],
)
def test_what_no_weighted_sum_can_fuse_is_refused_with_the_reason(
    folder: Path, changes: dict[str, object], reason: str
) -> None:
    change_settings(folder / "fog", **changes)
    assert reason in problem_of(folder, "fog")


def test_a_module_that_the_base_model_lacks_is_named(folder: Path) -> None:
    change_tensors(
        folder / "fog",
        **{
            "base_model.model.visual.unknown.lora_A.weight": torch.zeros(4, 8),
            "base_model.model.visual.unknown.lora_B.weight": torch.zeros(8, 4),
        },
    )
    assert "module 'visual.unknown'" in problem_of(folder, "fog")


def test_an_adapter_of_another_base_model_is_named_with_both_shapes(folder: Path) -> None:
    path = sorted(TARGETS)[0]
    change_tensors(folder / "fog", **{f"{path}.lora_A.weight": torch.zeros(RANKS["fog"], 999)})
    reason = problem_of(folder, "fog")
    assert f"layer '{path}'" in reason
    assert "999" in reason
    assert "another base model" in reason


def test_values_that_are_not_finite_are_found_when_the_library_is_opened(folder: Path) -> None:
    path = sorted(TARGETS)[3]
    outputs = TARGETS[path][0]
    change_tensors(folder / "snow", **{f"{path}.lora_B.weight": torch.full((outputs, RANKS["snow"]), float("nan"))})
    reason = problem_of(folder, "snow")
    assert f"B of layer '{path}'" in reason
    assert "not finite" in reason


def test_in_a_large_library_values_are_checked_when_first_used_and_the_adapter_is_passed_over_after(
    folder: Path,
) -> None:
    path = sorted(TARGETS)[3]
    inputs = TARGETS[path][1]
    change_tensors(folder / "snow", **{f"{path}.lora_A.weight": torch.full((RANKS["snow"], inputs), float("inf"))})
    library = load(folder, eager_bytes=0)
    assert library.problems == {}
    with pytest.raises(AdapterError, match="not finite"):
        library.adapter("snow").layers  # noqa: B018
    assert "snow" in library.problems
    with pytest.raises(AdapterError, match="not finite"):
        library.adapter("snow")
    assert library.adapter("fog").layers


@pytest.mark.parametrize("kept", [0, 4, 200, -1])
def test_a_truncated_weights_file_is_left_out(folder: Path, kept: int) -> None:
    path = folder / "fog" / WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    assert "truncated" in problem_of(folder, "fog")


def test_a_file_that_is_no_safetensors_is_left_out(folder: Path) -> None:
    (folder / "fog" / WEIGHTS).write_bytes(b"\x10" + bytes(7) + b"this is not JSON" + bytes(100))
    assert "not a safetensors file" in problem_of(folder, "fog")


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS, "fog_statistics.npz"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / "fog" / name).unlink()
    assert f"{name}: the file is missing" in problem_of(folder, "fog")


def test_pickled_content_is_never_loaded(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("unpickled",))

    content = np.array([Bomb()], dtype=object)
    np.savez(folder / "fog" / "fog_statistics.npz", train_average_embedding=content)
    assert "pickled content is refused" in problem_of(folder, "fog")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"average": np.zeros((1, EMBEDDING_DIM), np.float32)}, "lacks 'train_average_embedding'"),
        ({"train_average_embedding": np.full((1, EMBEDDING_DIM), np.nan, np.float32)}, "not finite"),
        ({"train_average_embedding": np.zeros((2, EMBEDDING_DIM), np.float32)}, "expected one row"),
        ({"train_average_embedding": np.zeros((1, EMBEDDING_DIM), np.int64)}, "floating-point"),
        ({"train_average_embedding": np.zeros((1, 5), np.float32)}, "another scene encoder"),
    ],
)
def test_a_centroid_of_the_wrong_form_is_refused(folder: Path, arrays: dict[str, np.ndarray], reason: str) -> None:
    np.savez(folder / "fog" / "fog_statistics.npz", **arrays)
    assert reason in problem_of(folder, "fog")


def test_a_truncated_centroid_is_refused(folder: Path) -> None:
    path = folder / "fog" / "fog_statistics.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert "truncated" in problem_of(folder, "fog")


def test_links_that_leave_the_library_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "fog").rename(tmp_path / "fog")
    (folder / "fog").symlink_to(tmp_path / "fog")
    assert "leaves the library" in problem_of(folder, "fog")
    (folder / "fog").unlink()
    (tmp_path / "fog").rename(folder / "fog")
    (folder / "fog" / WEIGHTS).rename(tmp_path / WEIGHTS)
    (folder / "fog" / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    assert "leaves its folder" in problem_of(folder, "fog")


# Libraries as a whole


def test_a_missing_or_empty_folder_is_a_library_error(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="No such file"):
        load(tmp_path / "nowhere")
    (tmp_path / "notes").mkdir()
    with pytest.raises(LibraryError, match="no adapter can be used"):
        load(tmp_path)


def test_a_library_of_broken_adapters_only_says_what_is_wrong_with_the_first(folder: Path) -> None:
    for name in ADAPTERS:
        change_settings(folder / name, use_dora=True)
    with pytest.raises(LibraryError, match="DoRA"):
        load(folder)


def full_manifest(folder: Path, **changes: object) -> LibraryManifest:
    entries = {
        name: AdapterEntry(
            sha256={path.name: file_sha256(path) for path in sorted((folder / name).iterdir())},
            images=12,
            spread_mean=0.5,
            spread_p95=0.25 + index,
            family="weather",
            licence="Apache-2.0",
            note="made by a test",
        )
        for index, name in enumerate(reversed(ADAPTERS))
    }
    manifest = LibraryManifest(
        base=ModelReference(id="tiny", sha256="b" * 64),
        encoder=ModelReference(id="tiny/scene", sha256="e" * 64),
        retrieval=RetrievalConfig(top_k=2, temperature=0.3),
        drift=DriftConfig(mix_threshold=0.2),
        adapters=entries,
    )
    return LibraryManifest(**{**vars(manifest), **changes})


def test_a_manifest_is_read_as_it_was_written(folder: Path) -> None:
    manifest = full_manifest(folder, note="a note")
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["library.yaml"]


def test_a_manifest_gives_order_spread_and_settings(folder: Path) -> None:
    write_manifest(folder, full_manifest(folder))
    library = load(folder, encoder_id="tiny/scene", base_sha="b" * 64)
    assert library.problems == {}
    assert library.names == tuple(reversed(ADAPTERS))
    np.testing.assert_allclose(library.spread, [0.25, 1.25, 2.25, 3.25])
    assert library.manifest.retrieval == RetrievalConfig(top_k=2, temperature=0.3)
    assert library.manifest.drift == DriftConfig(mix_threshold=0.2)
    assert library.entry("fog").family == "weather"


def with_home(folder: Path, centroid: np.ndarray) -> LibraryManifest:
    np.savez(folder / BASE_STATISTICS_NAME, train_average_embedding=centroid[None].astype(np.float32))
    home = BaseDomain(sha256=file_sha256(folder / BASE_STATISTICS_NAME), family="clear", images=9, spread_p95=0.75)
    manifest = full_manifest(folder, base_domain=home)
    write_manifest(folder, manifest)
    return manifest


def test_a_library_tells_where_the_base_model_is_at_home(folder: Path) -> None:
    centroid = np.arange(EMBEDDING_DIM)
    manifest = with_home(folder, centroid)
    assert read_manifest(folder) == manifest
    library = load(folder)
    for each in (library, library.reload()):
        assert each.base_statistics is not None
        np.testing.assert_array_equal(each.base_statistics.centroid, centroid)
        assert each.base_statistics.spread_p95 == 0.75


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"x"), "SHA-256 differs"),
        (lambda path: path.unlink(), "the file is missing"),
    ],
)
def test_a_library_works_on_without_the_base_models_centroid(folder: Path, damage, message: str) -> None:
    with_home(folder, np.arange(EMBEDDING_DIM))
    damage(folder / BASE_STATISTICS_NAME)
    library = load(folder)
    assert library.base_statistics is None
    assert set(library.names) == set(ADAPTERS)
    assert message in library.problems[BASE_STATISTICS_NAME]


def test_a_base_centroid_of_another_encoder_is_reported_and_ignored(folder: Path) -> None:
    with_home(folder, np.arange(EMBEDDING_DIM + 1))
    library = load(folder)
    assert library.base_statistics is None
    assert f"has {EMBEDDING_DIM + 1} values, expected {EMBEDDING_DIM}" in library.problems[BASE_STATISTICS_NAME]


@pytest.mark.parametrize("file_name", ["adapter_config.json", WEIGHTS, "fog_statistics.npz"])
@pytest.mark.parametrize("eager_bytes", [0, 10**9])
def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(folder: Path, file_name: str, eager_bytes: int) -> None:
    write_manifest(folder, full_manifest(folder))
    write_adapter(folder / "fog", tiny_adapter(tiny_model(), 4, seed=1), np.ones(EMBEDDING_DIM), alpha=5)
    for other in {"adapter_config.json", WEIGHTS, "fog_statistics.npz"} - {file_name}:
        manifest = read_manifest(folder)
        entry = manifest.adapters["fog"]
        digests = {**entry.sha256, other: file_sha256(folder / "fog" / other)}
        entries = {**manifest.adapters, "fog": AdapterEntry(sha256=digests)}
        write_manifest(folder, LibraryManifest(**{**vars(manifest), "adapters": entries}))
    library = load(folder, eager_bytes=eager_bytes)
    with pytest.raises(AdapterError, match="SHA-256 differs"):
        library.adapter("fog").layers  # noqa: B018
    assert file_name in library.problems["fog"]


def test_another_base_model_or_scene_encoder_is_an_error(folder: Path) -> None:
    write_manifest(folder, full_manifest(folder))
    with pytest.raises(LibraryError, match="base model"):
        load(folder, base_sha="c" * 64)
    with pytest.raises(LibraryError, match="base model"):
        load(folder, base_sha=lambda: "c" * 64)
    with pytest.raises(LibraryError, match=r"scene encoder.*'ViT-L-14/openai'"):
        load(folder, encoder_id="ViT-L-14/openai")


def test_the_digest_of_a_base_model_is_computed_only_where_the_library_states_one(folder: Path) -> None:
    assert load(folder, base_sha=lambda: pytest.fail("computed")).names == ADAPTERS


def test_a_listed_adapter_whose_folder_is_gone_is_a_problem(folder: Path) -> None:
    write_manifest(folder, full_manifest(folder))
    (folder / "fog").rename(folder.parent / "fog")
    assert "folder is missing" in problem_of(folder, "fog")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("base: [", "library.yaml"),
        ("colour: red", "unknown setting 'colour'"),
        ("format: 9", "format 9 is not known"),
        ("retrieval: {top_k: 0}", "top_k"),
        ("drift: {speed: 1}", "unknown setting 'speed'"),
        ("- a\n- b", "expected a mapping"),
        ("adapters: [fog]", "'adapters' must be a mapping, got list"),
        ("note: " + "[" * 50_000, "more than 32 levels are nested"),
        ("adapters: " + "{fog: " * 3_000 + "1" + "}" * 3_000, "more than 32 levels are nested"),
        ("\n".join(f"{' ' * level}a:" for level in range(1_000)), "more than 32 levels are nested"),
        ("base: &a {id: x}\nnote: *a", "alias '*a'"),
        ("format: " + "1" * 5_000, "5000 digits"),
    ],
)
def test_a_damaged_manifest_is_a_library_error_that_names_the_item(folder: Path, text: str, reason: str) -> None:
    (folder / "library.yaml").write_text(text)
    with pytest.raises(LibraryError) as raised:
        load(folder)
    assert reason in str(raised.value)
    assert "library.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("{images: many}", "adapters: fog: 'images' must be of type int"),
        ("{spread_p95: -1.0}", "'spread_p95' must be at least 0"),
        ("{spread_p95: .inf}", "'spread_p95' must be at least 0"),
        ("{sha256: abc}", "adapters: fog: 'sha256' must be a mapping, got 'abc'"),
        ("{sha256: {adapter_config.json: 3}}", "must be of type str, got 3"),
        ("{colour: red}", "unknown setting 'colour'"),
        ("3", "expected a mapping"),
    ],
)
def test_a_damaged_entry_costs_its_adapter_and_is_never_written_over(folder: Path, entry: str, reason: str) -> None:
    (folder / "library.yaml").write_text(f"adapters: {{fog: {entry}}}")
    assert reason in problem_of(folder, "fog")
    with pytest.raises(LibraryError, match="correct the entry"):
        change_manifest(folder, lambda manifest: manifest)
    assert entry in (folder / "library.yaml").read_text()


@pytest.mark.parametrize("name", ["../fog", "/etc", "5", "null", "base model", '"a\\nb"', '"\\u202ea"'])
def test_an_entry_under_a_name_that_no_folder_may_have_is_a_problem(folder: Path, name: str) -> None:
    (folder / "library.yaml").write_text(f"adapters: {{{name}: {{}}}}")
    library = load(folder)
    assert set(library.names) == set(ADAPTERS)
    assert ["must be a plain folder name" in reason for reason in library.problems.values()] == [True]


def test_a_manifest_of_a_terabyte_is_not_read(folder: Path) -> None:
    (folder / "library.yaml").touch()
    os.truncate(folder / "library.yaml", 2**40)
    with pytest.raises(LibraryError, match="it is no manifest"):
        load(folder)


@pytest.mark.parametrize("name", [b"a\nb", b"a\xff", b"n" * 201, "\u202ea".encode(), b"base model"])
def test_a_folder_under_a_name_that_cannot_be_published_is_a_problem_in_words_that_can(
    folder: Path, name: bytes
) -> None:
    os.rename(folder / "fog", os.fsencode(folder) + b"/" + name)
    library = load(folder)
    assert set(library.names) == set(ADAPTERS) - {"fog"}
    (key, reason), *others = library.problems.items()
    assert not others
    assert "rename the folder" in reason
    assert (key + reason).isascii()
    assert (key + reason).isprintable()


def test_what_nobody_foresaw_in_one_adapter_costs_that_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = AdapterReader.read

    def fail(self: AdapterReader, library: Path, name: str, *more: Any) -> Any:
        if name == "fog":
            raise ZeroDivisionError("unforeseen")
        return read(self, library, name, *more)

    monkeypatch.setattr(AdapterReader, "read", fail)
    assert "ZeroDivisionError: unforeseen" in problem_of(folder, "fog")


def test_manifests_hold_plain_yaml(folder: Path) -> None:
    path = write_manifest(folder, full_manifest(folder))
    values = yaml.safe_load(path.read_text())
    assert values["format"] == 1
    assert values["adapters"]["fog"]["images"] == 12


# Changes


def test_reload_sees_new_and_removed_adapters_and_leaves_the_old_library_alone(folder: Path) -> None:
    library = load(folder)
    (folder / "fog").rename(folder / "mist")
    (folder / "mist" / "fog_statistics.npz").rename(folder / "mist" / "mist_statistics.npz")
    again = library.reload()
    assert library.names == ADAPTERS
    assert again.names == ("day", "mist", "night", "snow")
    for name in again.names:
        assert again.adapter(name).layers
    assert again.reload().names == again.names


@pytest.mark.parametrize("eager_bytes", [0, 1 << 30])
def test_a_file_that_is_nearly_the_one_before_is_damaged_unless_its_digest_says_that_it_is_meant(
    folder: Path, eager_bytes: int
) -> None:
    path = folder / "fog" / WEIGHTS
    intact, tensors = path.read_bytes(), load_file(path)
    few = len(tensors) // 10

    def problem_with(keys: list[str]) -> str:
        """What is wrong once one value of each of these matrices has changed its sign."""
        changed = {key: value.clone() for key, value in tensors.items()}
        for key in keys:
            changed[key][0, 0] *= -1
        save_file(changed, path)
        again = library.reload()
        if "fog" in again.names:  # a library that is not small is read when it is used
            with contextlib.suppress(AdapterError):
                assert again.adapter("fog").layers
        return again.problems.get("fog", "")

    library = load(folder, eager_bytes=eager_bytes)
    assert library.adapter("fog").layers
    keys = sorted(tensors)
    for count in (1, few):
        assert f"adapter 'fog': {count} of {len(keys)} matrices differ" in problem_with(keys[:count])
    path.write_bytes(intact)
    assert problem_with([]) == ""
    assert problem_with(keys[::2]) == ""  # trained with A kept as it was
    assert problem_with(keys) == ""
    assert "matrices differ" in problem_with(keys[1:])  # nearly the one that was read last
    import_library(folder)
    library = load(folder, eager_bytes=eager_bytes)
    assert library.adapter("fog").layers
    tensors = load_file(path)
    assert "SHA-256" in problem_with(keys[:1])
    import_library(folder)
    assert library.reload().adapter("fog").layers


def test_statistics_of_earlier_releases_with_several_centroids_are_read(folder: Path) -> None:
    several = np.full((4, 3), np.nan)  # nothing looks at them
    np.savez(folder / "fog" / "fog_statistics.npz", train_average_embedding=tiny_centroid(1)[None], centroids=several)
    library = load(folder)
    assert library.problems == {}
    np.testing.assert_array_equal(library.centroids[1], tiny_centroid(1))


def test_memory_does_not_grow_with_adapters_that_are_not_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    layers = {"layer": (torch.zeros(8, 4096), torch.zeros(4096, 8))}  # 256 KiB each
    count = 200
    for index in range(count):
        write_adapter(folder / f"adapter-{index:03}", layers, np.full(8, index, np.float32))
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    library = AdapterLibrary.load(folder, targets={"layer": (4096, 4096)}, eager_bytes=0)
    assert len(library.names) == count
    growth = process.memory_info().rss - before
    assert growth < 8 * 1024 * 1024, f"{growth / 2**20:.1f} MiB for {count} adapters of 0.25 MiB"
