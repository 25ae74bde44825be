"""Damage to files and memory on the real pipeline: masks go on, and the right adapter is named. See docs/faults.md."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_parts import ADAPTERS, PipelineFactory, tiny_adapter, tiny_centroid, tiny_model, write_adapter
from torch import Tensor

from semla_ros.adaptation.fusion import Fuser
from semla_ros.adaptation.weight_slabs import WeightSlab
from semla_ros.config import RetrievalConfig
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.errors import AdapterError, LibraryError
from semla_ros.library import adapter_files, importing
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.library.importing import import_library
from semla_ros.library.manifest import read_manifest
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.results import AdapterMix, Frame, Generation, Segmentation
from semla_ros.segmentation.model import CatSeg
from semla_ros.segmentation.targets import lora_signature
from semla_ros.serving.health import adaptation_report

SECOND = 1_000_000_000
WEIGHTS, CONFIG, STATISTICS = "adapter_model.safetensors", "adapter_config.json", "fog_statistics.npz"
WIDE = RetrievalConfig(top_k=4, temperature=10.0, fade_out_of_library=False)  # every adapter is in every mix
Damage = Callable[[Path], object]


def scene(name: str, stamp_s: float) -> Frame:
    index = ADAPTERS.index(name)
    image = np.random.default_rng(index).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    image[0, 0] = index
    return Frame(image=image, stamp_ns=int(stamp_s * SECOND))


def single(name: str, weight: float = 1.0) -> AdapterMix:
    return AdapterMix(names=(name,), weights=np.array([weight]), distances=np.zeros(1), base_weight=1.0 - weight)


def told_of(pipeline: PerceptionPipeline) -> str:
    """What /diagnostics says of the adaptation path right after a failure."""
    return adaptation_report("perception", "", pipeline.status(), failure_age_s=0.0, hold_s=10.0).message


def pixels(answer: Segmentation) -> bytes:
    assert answer.confidence is not None
    return answer.mask.tobytes() + answer.confidence.tobytes()


# Files: each kind of damage x file x moment


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def vanish(path: Path) -> None:
    path.unlink()


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def become_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def become_noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def change_first(value: float) -> Damage:
    def change(path: Path) -> None:
        tensors = load_file(path)
        key = sorted(tensors)[0]
        tensors[key] = tensors[key].clone()
        tensors[key].view(-1)[0] = value
        save_file(tensors, path)

    return change


def scale(factor: float) -> Damage:
    def change(path: Path) -> None:
        save_file({key: value.double() * factor for key, value in load_file(path).items()}, path)

    return change


def cut_rows(path: Path) -> None:
    save_file({key: value[:, :1].contiguous() for key, value in load_file(path).items()}, path)


def header(text: str) -> Damage:
    def change(path: Path) -> None:
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(64))

    return change


def setting(key: str, text: str) -> Damage:
    def change(path: Path) -> None:
        values = json.loads(path.read_text())
        values[key] = "?"
        path.write_text(json.dumps(values).replace('"?"', text))

    return change


ENTRY = '{"a": {"dtype": %s, "shape": %s, "data_offsets": [0, 4]}}'
ANY_FILE = (truncate, empty, vanish, become_folder, become_pipe, become_loop, become_pointer, become_noise)
FILE_FAULTS: dict[str, tuple[str, Damage]] = {
    **{f"{name} {fault.__name__}": (name, fault) for name in (WEIGHTS, CONFIG, STATISTICS) for fault in ANY_FILE},
    "NaN": (WEIGHTS, change_first(float("nan"))),
    "infinite": (WEIGHTS, change_first(float("inf"))),
    "one huge value": (WEIGHTS, change_first(1e30)),
    "one large value": (WEIGHTS, change_first(50.0)),
    "all huge": (WEIGHTS, scale(1e15)),
    "more than float32 holds": (WEIGHTS, scale(1e200)),
    "wrong shape": (WEIGHTS, cut_rows),
    "nested header": (WEIGHTS, header('{"a":' * 100_000)),
    "infinite shape": (WEIGHTS, header(ENTRY % ('"F32"', "[Infinity]"))),
    "list for a type": (WEIGHTS, header(ENTRY % ("[1]", "[1]"))),
    "negative shape": (WEIGHTS, header(ENTRY % ('"F32"', "[-1, -1]"))),
    "no mapping": (WEIGHTS, header("[1, 2]")),
    "alpha of 400 digits": (CONFIG, setting("lora_alpha", "9" * 400)),
    "alpha of 9000 digits": (CONFIG, setting("lora_alpha", "9" * 9000)),
    "rank of 400 digits": (CONFIG, setting("r", "9" * 400)),
    "nested configuration": (CONFIG, setting("r", "[" * 100_000)),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_damaged_adapter_is_left_out_by_name_before_start_and_in_the_same_turn_while_serving(
    fault: str, make_pipeline: PipelineFactory, library_copy: Path, tmp_path: Path
) -> None:
    file_name, damage = FILE_FAULTS[fault]
    intact = Path(shutil.copytree(library_copy, tmp_path / "intact"))
    serving = make_pipeline(library_folder=library_copy, retrieval=RetrievalConfig(top_k=1))
    serving.process(scene("day", 1))
    damage(library_copy / "fog" / file_name)
    assert serving.process(scene("fog", 9.5))[1].action == "dwell"  # one look makes no other scene
    started = make_pipeline(library_folder=library_copy, retrieval=WIDE)  # before start
    for pipeline, stamp_s in ((serving, 10), (started, 1)):  # while serving: its matrices are read now
        answer, step = pipeline.process(scene("fog", stamp_s))
        assert step.action == "fused", step.error
        if file_name == WEIGHTS or pipeline is started:
            assert "fog" not in answer.generation.mix.names
            assert "'fog'" in pipeline.status().library_problems["fog"]
    serving.reload_library()
    assert "'fog'" in serving.status().library_problems["fog"]
    assert "fog" not in serving.generation.mix.names
    # The damage mended, everything is as if it had never been.
    for path in (library_copy / "fog").iterdir():
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(intact / "fog", library_copy / "fog", dirs_exist_ok=True)
    assert serving.reload_library().mix.names == ("fog",)
    assert serving.status().library_problems == {}


def test_files_in_place_of_weights_are_named_as_what_they_are(library_copy: Path) -> None:
    for name, damage, what in (
        ("fog", become_pointer, "git-lfs"),
        ("day", lambda path: path.rename(path.with_name("adapter_model.bin")), "adapter_model.bin is a pickle"),
        ("snow", lambda path: torch.save({"a": torch.zeros(2)}, path), "a pickle, which is never read"),
    ):
        damage(library_copy / name / WEIGHTS)
        assert what in AdapterLibrary.load(library_copy).problems[name]
    become_pointer(library_copy / "night" / CONFIG)
    with pytest.raises(LibraryError):
        AdapterLibrary.load(library_copy)


@pytest.mark.parametrize("damage", [become_folder, become_pipe, become_loop, become_noise])
def test_a_library_yaml_of_any_kind_is_an_error_and_never_waited_for(library_copy: Path, damage: Damage) -> None:
    (library_copy / "library.yaml").touch()
    damage(library_copy / "library.yaml")
    with pytest.raises(LibraryError, match=r"library\.yaml"):
        AdapterLibrary.load(library_copy)


def test_a_folder_that_is_a_link_to_itself_is_left_out_by_name(library_copy: Path) -> None:
    (library_copy / "loop").symlink_to("loop")
    library = AdapterLibrary.load(library_copy)
    assert library.names == ADAPTERS
    assert "leads nowhere" in library.problems["loop"]


def test_an_adapter_that_vanishes_while_the_library_is_read_is_left_out(
    library_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = adapter_files.AdapterReader.read

    def and_remove(self: adapter_files.AdapterReader, library: Path, name: str, *more: Any) -> Any:
        shutil.rmtree(library_copy / "fog", ignore_errors=True)
        return read(self, library, name, *more)

    monkeypatch.setattr(adapter_files.AdapterReader, "read", and_remove)
    assert "fog" in AdapterLibrary.load(library_copy).problems


def reason_of(reader: adapter_files.AdapterReader, library: Path) -> str:
    try:
        reader.read_layers(reader.read(library, "fog"))
    except AdapterError as error:
        return str(error)
    return ""


def test_whatever_bytes_a_file_holds_reading_it_names_the_adapter(library_copy: Path) -> None:
    """Random bytes written over random places of each file: sound, or an AdapterError; nothing else, ever."""
    rng = np.random.default_rng(int(os.environ.get("SEMLA_FLIP_SEED", 0)))
    reader = adapter_files.AdapterReader(lora_signature(tiny_model()))
    refused = 0
    for name in (WEIGHTS, CONFIG, STATISTICS):
        path = library_copy / "fog" / name
        intact = path.read_bytes()
        for _ in range(100):
            content = bytearray(intact)
            start = int(rng.integers(min(len(content), 3000)))
            content[start : start + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(0, 9)))
            path.write_bytes(content)
            reason = reason_of(reader, library_copy)
            refused += bool(reason)
            assert reason.startswith("adapter 'fog': " if reason else "")
            assert "\n" not in reason
        path.write_bytes(intact)
    assert refused > 100


@pytest.mark.parametrize("moment", ["prepare", "commit"])
def test_files_that_change_in_the_middle_of_a_turn_cost_nothing(
    moment: str, make_pipeline: PipelineFactory, library_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, retrieval=RetrievalConfig(top_k=1))
    act = getattr(Fuser, moment)

    def after_damage(self: Fuser, *arguments: Any) -> Any:
        for name in (WEIGHTS, CONFIG, STATISTICS):
            become_noise(library_copy / "fog" / name)
        return act(self, *arguments)

    monkeypatch.setattr(Fuser, moment, after_damage)
    answer, step = pipeline.process(scene("fog", 1))
    assert step.action == "fused"
    # What was read before serves; what is read after the damage does not.
    assert (answer.generation.mix.names == ("fog",)) == (moment == "commit")
    assert ("fog" in pipeline.status().library_problems) == (moment == "prepare")


def test_a_slow_disk_delays_no_frame(
    make_pipeline: PipelineFactory, library_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(library_folder=library_copy)
    is_reading, may_end = threading.Event(), threading.Event()
    read = adapter_files.AdapterReader.read_layers

    def slowly(self: adapter_files.AdapterReader, *arguments: Any) -> Any:
        is_reading.set()
        assert may_end.wait(20)
        return read(self, *arguments)

    monkeypatch.setattr(adapter_files.AdapterReader, "read_layers", slowly)
    pipeline.start()
    pipeline.offer(scene("fog", 1))
    assert is_reading.wait(20)
    assert pipeline.segment(scene("fog", 1)).generation.number == 0
    pipeline.reset_gate()  # by the frame path, where stamps jump back: waits for no turn
    pipeline.freeze(True)  # returns at once, and the turn in flight changes nothing any more
    may_end.set()
    pipeline.stop()
    assert pipeline.generation.number == 0
    assert pipeline.status().last_action == "frozen"
    pipeline.freeze(False)
    assert pipeline.adapt(scene("fog", 2)).action == "fused"


def test_a_full_disk_leaves_library_and_manifest_as_they_were(
    library_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_library(library_copy)
    before = (library_copy / "library.yaml").read_bytes()
    write_adapter(tmp_path / "mist", tiny_adapter(tiny_model(), 2, seed=9), tiny_centroid(9))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((Path, "write_bytes"), (shutil, "copyfile"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space"):
                importing.add_adapter(library_copy, tmp_path / "mist")
        assert (library_copy / "library.yaml").read_bytes() == before
        assert AdapterLibrary.load(library_copy).names == ADAPTERS
        assert [path.name for path in library_copy.iterdir() if path.name.startswith(".")] == []


def test_a_disk_that_fails_sets_one_adapter_aside(
    make_pipeline: PipelineFactory, library_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, retrieval=WIDE)
    open_regular = adapter_files.open_regular

    def failing(path: str | Path) -> Any:
        if "fog/" in str(path):
            raise OSError(errno.EIO, "Input/output error")
        return open_regular(path)

    monkeypatch.setattr(adapter_files, "open_regular", failing)
    answer, step = pipeline.process(scene("fog", 1))
    assert step.action == "fused"
    assert set(answer.generation.mix.names) == {"day", "night", "snow"}
    assert "Input/output error" in pipeline.status().library_problems["fog"]


def test_two_writers_of_one_library_lose_nothing(library_copy: Path, tmp_path: Path) -> None:
    import_library(library_copy)
    names = [f"mist-{index}" for index in range(8)]
    for index, name in enumerate(names):
        write_adapter(tmp_path / name, tiny_adapter(tiny_model(), 2, seed=index), tiny_centroid(5 + index))
    threads = [threading.Thread(target=importing.add_adapter, args=(library_copy, tmp_path / name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_manifest(library_copy).adapters) == {*ADAPTERS, *names}
    assert AdapterLibrary.load(library_copy).without_digest == ()


# Adapters that fail after they were read


def poisoned(layers: dict[str, tuple[Tensor, Tensor]], value: float) -> dict[str, tuple[Tensor, Tensor]]:
    path, (a, b) = next(iter(layers.items()))
    return {**layers, path: (torch.full_like(a, value, dtype=torch.float64), b)}


def narrowed(layers: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    path, (a, b) = next(iter(layers.items()))
    return {**layers, path: (a[:, 1:], b)}


@pytest.mark.parametrize("weight", [None, 1e-168])
@pytest.mark.parametrize(
    "change",
    [
        lambda layers: poisoned(layers, float("nan")),
        lambda layers: poisoned(layers, 1e300),  # finite in float64
        lambda layers: poisoned(layers, 3e37),  # finite in float32, its product is not
        narrowed,
        lambda layers: {path: (a.flatten(), b) for path, (a, b) in layers.items()},
    ],
    ids=["NaN", "float64", "product", "shape", "dimension"],
)
def test_an_adapter_that_fails_after_reading_is_set_aside_in_the_same_turn(
    change: Callable[[Any], Any], weight: float | None, make_pipeline: PipelineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(retrieval=WIDE)
    read = AdapterLibrary._read_layers

    def read_changed(self: AdapterLibrary, name: str) -> Any:
        layers = read(self, name)
        return change(layers) if name == "fog" else layers

    monkeypatch.setattr(AdapterLibrary, "_read_layers", read_changed)
    if weight is not None:
        retrieve = pipeline._retriever.retrieve

        def faint(embedding: np.ndarray) -> AdapterMix:
            mix = retrieve(embedding)
            weights = np.where([name == "fog" for name in mix.names], weight, mix.weights)
            return AdapterMix(
                names=mix.names, weights=weights, distances=mix.distances, base_weight=1.0 - float(weights.sum())
            )

        monkeypatch.setattr(pipeline._retriever, "retrieve", faint)
    answer, step = pipeline.process(scene("fog", 1))
    assert step.action == "fused"
    assert set(answer.generation.mix.names) == {"day", "night", "snow"}
    status = pipeline.status()
    assert status.failures == 1
    assert "'fog'" in status.last_error
    assert "'fog'" in status.library_problems["fog"]


@pytest.mark.parametrize("failure", [RuntimeError, AdapterError, ValueError, "not finite"])
@pytest.mark.parametrize("guilty", [{"fog"}, {"fog", "snow"}], ids=["one", "two"])
def test_an_adapter_with_which_the_text_tower_fails_is_found_among_those_of_the_mix(
    failure: Any, guilty: set[str], make_pipeline: PipelineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(retrieval=WIDE)
    encode, fuse = CatSeg.encode_text, WeightSlab.fuse
    present: set[int] = set()

    def fuse_and_note(self: WeightSlab, terms: Any, *more: Any) -> None:
        if self.is_shadowed:
            present.clear()
            present.update(id(stack) for stack, _ in terms)
        fuse(self, terms, *more)

    def fail(self: CatSeg, tokens: Tensor) -> Tensor:
        bad = [stack for name in guilty for stack in pipeline._fuser._resident.get(name, ())]
        if present & {id(stack) for stack in bad}:
            if failure == "not finite":
                return encode(self, tokens) * torch.nan
            raise failure("on purpose")
        return encode(self, tokens)

    monkeypatch.setattr(WeightSlab, "fuse", fuse_and_note)
    monkeypatch.setattr(CatSeg, "encode_text", fail)
    answer, step = pipeline.process(scene("fog", 1))
    assert step.action == "fused"
    assert set(answer.generation.mix.names) == set(ADAPTERS) - guilty
    assert set(pipeline.status().library_problems) == guilty


def test_a_device_that_fails_sets_no_adapter_aside(
    make_pipeline: PipelineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(retrieval=WIDE)
    with monkeypatch.context() as patch:
        patch.setattr(CatSeg, "encode_text", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        assert pipeline.adapt(scene("fog", 1)).action == "failed"
    assert pipeline.status().library_problems == {}
    assert pipeline.adapt(scene("fog", 2)).action == "fused"


def test_a_present_mix_with_an_adapter_that_fails_for_new_classes_goes_on_without_it(
    make_pipeline: PipelineFactory, library_copy: Path
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, retrieval=WIDE)
    before = pipeline.adapt(scene("fog", 1)).generation
    pipeline._fuser.set_library(pipeline.library)  # as a reload does: adapters are read again
    become_noise(library_copy / "fog" / WEIGHTS)
    generation = pipeline.set_classes(["sky", "car"])
    assert set(generation.mix.names) == {"day", "night", "snow"}
    assert generation.mix.base_weight == pytest.approx(before.mix.base_weight + before.mix.as_dict()["fog"])


@pytest.mark.parametrize(
    "error", [MemoryError("on purpose"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_short_memory_blames_no_adapter_and_the_same_turn_is_fused_with_less(
    error: Exception, make_pipeline: PipelineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(retrieval=RetrievalConfig(top_k=1, fade_out_of_library=False))
    size, fuse, encode = pipeline.status().adapted_weights_bytes, WeightSlab.fuse, CatSeg.encode_text
    failed: list[str] = []

    def fail_once(owner: str) -> None:
        if owner not in failed:
            failed.append(owner)
            raise error

    def encode_text(self: CatSeg, tokens: Tensor) -> Tensor:
        fail_once("text")
        return encode(self, tokens)

    monkeypatch.setattr(CatSeg, "encode_text", encode_text)
    step = pipeline.adapt(scene("fog", 1))
    assert (step.action, step.error) == ("fused", None)
    status = pipeline.status()
    assert failed == ["text"]
    assert (status.failures, status.library_problems) == (0, {})
    assert status.adapted_weights_bytes < size
    assert [note for note in status.engine_notes if "memory 'single' serves: out of memory (" in note]

    # Nothing is left to do without: that turn fails, no adapter is to blame, and the next one works.
    def fail_to_fuse(self: WeightSlab, *arguments: Any) -> None:
        fail_once("fuse")
        fuse(self, *arguments)

    monkeypatch.setattr(WeightSlab, "fuse", fail_to_fuse)
    assert pipeline.adapt(scene("snow", 10)).action == "dwell"
    assert pipeline.adapt(scene("snow", 11)).action == "failed"
    assert pipeline.status().library_problems == {}
    assert pipeline.adapt(scene("snow", 12)).action == "fused"
    assert len(pipeline.status().engine_notes) == len(status.engine_notes)


def test_a_mix_that_is_asked_for_with_a_damaged_adapter_is_refused_and_the_adapter_set_aside(
    make_pipeline: PipelineFactory, library_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, retrieval=WIDE)
    before = pipeline.segment(scene("fog", 1))
    stack = WeightSlab.stack

    def fail(self: WeightSlab, layers: Any, scaling: float, adapter: str) -> Any:
        if adapter == "fog":
            raise ValueError("on purpose")  # read, and found sound
        return stack(self, layers, scaling, adapter)

    with monkeypatch.context() as patch:
        patch.setattr(WeightSlab, "stack", fail)
        with pytest.raises(AdapterError, match="'fog'"):
            pipeline.apply_mix(single("fog"), "parameters")
    status = pipeline.status()
    assert (status.failures, status.generation) == (1, before.generation)
    assert "on purpose" in status.library_problems["fog"]
    assert pixels(pipeline.segment(scene("fog", 1))) == pixels(before)
    assert "fog" not in pipeline.adapt(scene("fog", 1)).generation.mix.names
    # Set aside until one of its files changes, also where it is asked for again before that is noticed.
    assert "fog" not in pipeline.reload_library().mix.names
    os.utime(library_copy / "fog" / WEIGHTS)
    with pytest.raises(AdapterError, match="'fog'"):
        pipeline.apply_mix(single("fog"), "parameters")
    assert "fog" in pipeline.reload_library().mix.names
    with pytest.raises(AdapterError, match="'mist'"):
        pipeline.apply_mix(single("mist"), "parameters")
    assert pipeline.status().library_problems == {}  # what the library never had is no problem of it


# A forward pass that is not finite


@dataclass
class PoisonedForward:
    """Scores are NaN as long as one of these adapters is in the weights."""

    pipeline: PerceptionPipeline
    names: set[str]

    def __call__(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(model: CatSeg, *inputs: Tensor) -> Tensor:
            in_use = self.pipeline._fuser.in_use
            is_bad = in_use is not None and self.names & set(in_use.mix.names)
            return forward(model, *inputs) * (torch.nan if is_bad else 1.0)

        return run


@pytest.mark.parametrize("memory", ["double", "single"])
@pytest.mark.parametrize("is_batch", [False, True])
def test_a_frame_that_is_not_finite_is_answered_by_the_base_model_and_adaptation_goes_on(
    memory: str, is_batch: bool, make_pipeline: PipelineFactory, library_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, memory=memory, retrieval=RetrievalConfig(top_k=1))
    base = pixels(pipeline.segment(scene("fog", 1)))
    monkeypatch.setattr(CatSeg, "forward", PoisonedForward(pipeline, {"fog"})(CatSeg.forward))
    told: list[Generation] = []
    pipeline.on_generation.append(told.append)
    assert pipeline.adapt(scene("fog", 1)).generation.mix.names == ("fog",)
    frame = scene("fog", 1)
    answer = pipeline.segment_batch([frame])[0] if is_batch else pipeline.segment(frame)
    assert pixels(answer) == base
    assert answer.generation is pipeline.generation
    assert (answer.generation.number, answer.generation.reason, answer.generation.mix.names) == (2, "failure", ())
    assert [item.number for item in told] == [1, 2]
    status = pipeline.status()
    assert status.failures == 1
    assert "not finite" in status.last_error
    assert "set aside" in status.library_problems["fog"]
    assert "; generation 2 is in use: base model 100.0%;" in told_of(pipeline)
    step = pipeline.adapt(scene("fog", 1.1))  # at once, although the scene is steady
    assert step.action == "fused"
    assert f"; generation 3 is in use: {step.generation.mix};" in told_of(pipeline)
    assert "fog" not in step.generation.mix.names
    pipeline.reload_library()
    assert "fog" in pipeline.status().library_problems  # nothing has changed
    os.utime(library_copy / "fog" / WEIGHTS)
    assert pipeline.reload_library().mix.names == ("fog",)


def test_a_mix_that_was_being_prepared_when_its_adapters_failed_is_given_up(
    make_pipeline: PipelineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(retrieval=RetrievalConfig(top_k=1))
    monkeypatch.setattr(CatSeg, "forward", PoisonedForward(pipeline, {"fog"})(CatSeg.forward))
    pipeline.adapt(scene("fog", 1))
    prepare = Fuser.prepare

    def while_a_frame_fails(self: Fuser, mix: AdapterMix) -> Any:
        prepared = prepare(self, mix)
        monkeypatch.setattr(Fuser, "prepare", prepare)
        assert pipeline.segment(scene("fog", 2)).generation.reason == "failure"
        return prepared

    monkeypatch.setattr(Fuser, "prepare", while_a_frame_fails)
    generation = pipeline.update(retrieval=RetrievalConfig(top_k=1, temperature=0.3))
    assert generation.number == 3
    assert "fog" not in generation.mix.names


# Commit


@pytest.mark.parametrize("memory", ["double", "single"])
@pytest.mark.parametrize("is_lasting", [False, True], ids=["once", "from then on"])
def test_whatever_fails_in_a_commit_masks_are_those_of_the_generation_that_they_name(
    memory: str, is_lasting: bool, make_pipeline: PipelineFactory, library_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline(library_folder=library_copy, memory=memory)
    frame = scene("snow", 1)
    expected = {(): pixels(pipeline.segment(frame))}
    for name in ("day", "fog"):
        pipeline.apply_mix(single(name), "parameters")
        expected[(name,)] = pixels(pipeline.segment(frame))
    assert len(set(expected.values())) == 3
    shutil.rmtree(library_copy / "fog")  # the way back must not need its file
    commit = Fuser.commit
    count = limit = 0
    is_armed = False

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if is_armed:
                count += 1
                if count == limit or (is_lasting and count > limit):
                    raise (MemoryError, RuntimeError, OSError)[limit % 3]("on purpose")
            return function(*arguments, **options)

        return run

    def armed(self: Fuser, *arguments: Any) -> None:
        nonlocal is_armed
        is_armed = True
        try:
            commit(self, *arguments)
        finally:
            is_armed = False

    monkeypatch.setattr(Fuser, "commit", armed)
    monkeypatch.setattr(TorchEngine, "set_text", counted(TorchEngine.set_text))
    for name in ("mul", "baddbmm", "empty"):
        monkeypatch.setattr(torch, name, counted(getattr(torch, name)))
    for owner, name in ((Tensor, "copy_"), (WeightSlab, "fuse"), (WeightSlab, "swap"), (WeightSlab, "restore")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    for limit in range(1, 200):
        before, failures, count = pipeline.generation, pipeline.status().failures, 0
        try:
            pipeline.apply_mix(single("day"), "parameters")
        except (MemoryError, RuntimeError, OSError):
            pass
        else:
            break
        answer = pipeline.segment(frame)
        assert pixels(answer) == expected[answer.generation.mix.names], limit
        assert pipeline.status().failures > failures
        if not is_lasting:
            assert answer.generation is before
    assert limit > 5
    answer = pipeline.segment(frame)
    assert pixels(answer) == expected[("day",)]


def test_settings_are_changed_whole_or_not_at_all(
    make_pipeline: PipelineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make_pipeline()
    pipeline.adapt(scene("fog", 1))
    before = pipeline.retrieval, pipeline.drift, pipeline.generation
    monkeypatch.setattr(Fuser, "prepare", lambda *_: (_ for _ in ()).throw(RuntimeError("on purpose")))
    with pytest.raises(RuntimeError):
        pipeline.update(retrieval=WIDE, drift=type(pipeline.drift)(steady_s=9.0))
    assert (pipeline.retrieval, pipeline.drift, pipeline.generation) == before
