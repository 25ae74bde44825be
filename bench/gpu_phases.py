"""The phases of the acceptance run on a GPU. Each is a generator of figures and runs in a process of its own.

What a phase has yielded is kept where it crashes or runs out of time later. With the device "cpu" they run without a
GPU, which is how they are tested; graphs, CUDA events and the device's memory are then left out.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from bench import machine
from bench.frame import CLASSES, predict_maps
from bench.fusion import mix_of
from bench.graphs import counted_graphs, no_graphs
from bench.published_loop import PublishedLoop
from bench.random_world import (
    ADAPTERS,
    Size,
    class_list,
    random_encoder,
    random_image,
    random_model,
    random_parts,
    random_tokens,
    write_random_library,
)
from bench.serving import serve_apart
from bench.stall import SHIPPED
from bench.stall import measure as measure_stall
from bench.timing import Timing, clock_of, time_alternating, time_runs
from semla_ros.adaptation.fusion import Fuser
from semla_ros.adaptation.retrieval import Retriever
from semla_ros.atomic_files import write_atomically
from semla_ros.config import InferenceConfig, RetrievalConfig, SemlaConfig
from semla_ros.engines.base import agreement
from semla_ros.engines.torch_engine import TorchEngine
from semla_ros.lab.world.drive import demo_drive
from semla_ros.library.adapter_library import AdapterLibrary
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.resources import share_folder
from semla_ros.results import Frame, ImageArray
from semla_ros.segmentation.inference import InferenceMode, whole_view
from semla_ros.segmentation.targets import lora_signature
from semla_ros.timing import Stopwatch

Figures = dict[str, Any]
FRAMES_A_TURN = 5  # of ours, for one of the published loop's
VOCABULARIES = (19, 40, 11, 65)  # each in a bucket of its own
ENDURANCE = 100
PRECISIONS = (  # name, type, whether products may round their inputs to TF32
    ("fp32", torch.float32, False),
    ("tf32", torch.float32, True),
    ("fp16", torch.float16, False),
    ("bf16", torch.bfloat16, False),
)


@dataclass(frozen=True)
class Bench:
    """Where and how much.

    Attributes:
        device: "cuda", or "cpu" to try the phases out.
        sizes: Models to measure, the smaller one first.
        resolutions: Name -> height and width of camera images.
        repeats: Turns of what is compared.
        seconds: Of frames in the phase `stall`.
    """

    device: str
    sizes: tuple[Size, ...]
    resolutions: Mapping[str, tuple[int, int]]
    repeats: int
    seconds: float

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def image(self) -> ImageArray:
        """Noise in the size of the smaller camera."""
        return random_image(*next(iter(self.resolutions.values())))

    @property
    def half(self) -> str:
        """The precision that frames are measured in."""
        return "fp16" if self.is_cuda else "fp32"


CAMERAS = {"480p": (480, 640), "1080p": (1080, 1920)}
SMALL_CAMERA = {"480p": (96, 128)}
ON_A_GPU = Bench(device="cuda", sizes=("b", "l"), resolutions=CAMERAS, repeats=10, seconds=8.0)
DRY = Bench(device="cpu", sizes=("toy",), resolutions=SMALL_CAMERA, repeats=1, seconds=1.2)


def machine_phase(bench: Bench) -> Iterator[Figures]:
    """Versions, copy bandwidth and the rates of matrix products."""
    yield {"machine": machine.describe_machine(), **(_card() if bench.is_cuda else {})}
    clock = clock_of(bench.device)
    count = 2**30 if bench.is_cuda else 2**22
    source, target = (torch.empty(count, dtype=torch.uint8, device=bench.device) for _ in range(2))
    copies = time_runs(lambda: [target.copy_(source) for _ in range(10)], bench.repeats, clock=clock)
    yield {"copy_bytes_per_s": 10 * 2 * count / copies.best * 1e3}  # read and written
    edge = 8192 if bench.is_cuda else 256
    for name, dtype, has_tf32 in _precisions_of(bench):
        a, b = (torch.randn(edge, edge, device=bench.device, dtype=dtype) for _ in range(2))
        with _tf32(has_tf32):
            runs = time_runs(lambda a=a, b=b: a @ b, bench.repeats, warm_up=3, clock=clock)
        yield {f"matmul_{name}_flops_per_s": 2 * edge**3 / runs.best * 1e3}


def _precisions_of(bench: Bench) -> list[tuple[str, torch.dtype, bool]]:
    """Those that a device has: TF32 is a GPU's."""
    return [item for item in PRECISIONS if bench.is_cuda or item[0] != "tf32"]


@contextmanager
def _tf32(is_allowed: bool) -> Iterator[None]:
    """Let matrix products and convolutions of fp32 round their inputs to TF32, or not."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = is_allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _card() -> Figures:
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:  # a Jetson has none
        answer = f"nvidia-smi: {error}"
    return {
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": properties.total_memory / 2**30,
        "cuda": torch.version.cuda,
        "driver": answer,
    }


def gpu_test_files() -> list[Path]:
    """The files that have tests for a GPU; the others may import what a GPU machine lacks."""
    tests = (share_folder() / "test").rglob("test_*.py")
    return sorted(path for path in tests if "mark.gpu" in path.read_text(encoding="utf-8"))


def tests_phase(bench: Bench) -> Iterator[Figures]:
    """`pytest -m gpu`; on a CPU one of the tests that run on both."""
    chosen = ["-m", "gpu"] if bench.is_cuda else ["-k", "test_on_a_gpu and cpu and cameras"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, f"--junitxml={report}"]
        answer = subprocess.run([*command, *map(str, gpu_test_files())], cwd=share_folder(), check=False)
        suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    bad = counts["failures"] + counts["errors"]
    yield {"passed": counts["tests"] - counts["skipped"] - bad, "failed": bad, "skipped": counts["skipped"]}
    yield {"skips": sorted({skip.get("message", "") for skip in suite.iter("skipped")}), "exit": answer.returncode}


def parity_phase(bench: Bench) -> Iterator[Figures]:
    """The shipped model in each precision against fp64: class scores, and masks of rendered streets."""
    pipeline = PerceptionPipeline.load(SemlaConfig(model=SHIPPED, inference=InferenceConfig(device=bench.device)))
    images, text = _streets(4 if bench.is_cuda else 1), pipeline.text_features.float()
    config = pipeline.model.config
    exact_model = copy.deepcopy(pipeline.model).double()
    views = [whole_view(torch.from_numpy(image).permute(2, 0, 1).to(bench.device), config).double() for image in images]
    # Not in inference mode: there a CPU computes in groups that suit its caches, in fp32, and not as a GPU does.
    exact = [exact_model(view, text.double()) for view in views]
    masks = [scores.argmax(dim=1).cpu().numpy() for scores in exact]
    del exact_model
    plain, serves = copy.deepcopy(pipeline.model).float(), getattr(pipeline.engine, "precision", "fp32")
    pipeline.close()
    for name, dtype, has_tf32 in _precisions_of(bench):
        is_half = dtype != torch.float32
        with _tf32(has_tf32), torch.autocast(bench.device, dtype=dtype, enabled=is_half):
            given = [plain(view.float(), text).double() for view in views]
        figures = {
            "relative_error": max(
                float((a - b).abs().max() / b.abs().max()) for a, b in zip(given, exact, strict=True)
            ),
            "mask_agreement": agreement([scores.argmax(dim=1).cpu().numpy() for scores in given], masks),
        }
        yield {name: figures, **({"served": {"precision": name, **figures}} if name == serves else {})}


def _streets(count: int) -> list[ImageArray]:
    """Rendered streets, each in another weather."""
    drive = demo_drive(7)
    return [drive.render(drive.duration_s * (index + 0.5) / count).image for index in range(count)]


def frame_phase(bench: Bench, size: Size) -> Iterator[Figures]:
    """One frame as it is served, eagerly, and in the published loop, in turns."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns that the active adapter was deleted, which is the point
        model, encoder = random_model(size, device=bench.device), random_encoder(size, bench.device)
        write_random_library(Path(folder), model, ADAPTERS, encoder.dim)
        library = AdapterLibrary.load(folder, targets=lora_signature(model))
        retriever, tokens = Retriever(library, RetrievalConfig()), random_tokens(model, CLASSES).to(bench.device)
        loop = PublishedLoop(copy.deepcopy(model), Path(folder), ADAPTERS)
        with torch.inference_mode():
            text = model.encode_text(tokens)
        yield {"size": size}
        modes: tuple[InferenceMode, ...] = ("whole", "sliding")
        for mode in modes:
            served, eager = (_engine(bench, copy.deepcopy(model), mode, text, is_eager=flag) for flag in (False, True))
            for name, (height, width) in bench.resolutions.items():
                image = random_image(height, width)

                def published(image: ImageArray = image, mode: InferenceMode = mode) -> None:
                    predict = predict_maps(mode)
                    loop.segment(image, encoder.embed, retriever.retrieve, tokens, predict, Stopwatch())

                yield {f"{mode}_{name}": _frames_in_turns(bench, served, eager, published, image)}
            served.close()
            eager.close()


def _engine(bench: Bench, model: Any, mode: InferenceMode, text: Tensor, *, is_eager: bool) -> TorchEngine:
    """A warm engine in half precision, also where random weights, whose classes are near ties, fail its gate."""
    config = InferenceConfig(inference=mode, device=bench.device, precision=bench.half)  # type: ignore[arg-type]
    engine = TorchEngine(model, config, probe_images=[random_image(192, 256)])
    engine.set_text(text)
    with no_graphs() if is_eager else nullcontext():
        engine.warm_up()
        if engine.precision != bench.half:
            engine.precision = bench.half
        engine.segment(bench.image(), False)
    return engine


def _frames_in_turns(
    bench: Bench, served: TorchEngine, eager: TorchEngine, published: Callable[[], object], image: ImageArray
) -> Figures:
    """Frames of one size; that each row is what its name says is counted, not assumed."""
    replays = {"served": 0, "eager": 0}

    def segment(name: str, engine: TorchEngine) -> None:
        before = graphs.replays
        engine.segment(image, False)
        replays[name] += graphs.replays - before

    def eager_frame() -> None:
        with no_graphs():
            segment("eager", eager)

    runs = [*[lambda: segment("served", served)] * FRAMES_A_TURN, *[eager_frame] * FRAMES_A_TURN, published]
    with counted_graphs() as graphs:
        time_alternating(runs, 1, warm_up=0)  # whatever has to be captured for this size is
        captures, replays = graphs.captures, dict.fromkeys(replays, 0)
        timings = time_alternating(runs, bench.repeats, warm_up=0, clock=clock_of(bench.device))
    ours, theirs, loop = (
        Timing(tuple(itertools.chain.from_iterable(timing.samples_ms for timing in part)))
        for part in (timings[:FRAMES_A_TURN], timings[FRAMES_A_TURN:-1], timings[-1:])
    )
    return {
        "served": ours.as_dict(),
        "eager": theirs.as_dict(),
        "published_loop": loop.as_dict(),
        "precision": served.precision,
        "replays_per_frame": replays["served"] / len(ours.samples_ms),
        "replays_in_eager": replays["eager"],
        "captures": graphs.captures - captures,
        "speedup_vs_eager": theirs.median / ours.median,
        "speedup_vs_published_loop": loop.median / ours.median,
        "notes": [*served.notes, *eager.notes],
    }


def fusion_phase(bench: Bench) -> Iterator[Figures]:
    """Fusing five adapters, and the commit, each against a copy of the weights."""
    for size in bench.sizes:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model = random_model(size, device=bench.device)
            write_random_library(Path(folder), model, ADAPTERS, dim=8)
            library = AdapterLibrary.load(folder, targets=lora_signature(model))
            fuser = Fuser(model, library, random_tokens(model, CLASSES).to(bench.device))
            mixes = [mix_of(np.random.default_rng(seed).dirichlet(np.ones(5))) for seed in range(2)]
            turns = itertools.cycle(mixes)
            fuser.commit(fuser.prepare(mixes[0]))  # loads the adapters
            yield {size: _fusion_in_turns(bench, fuser, lambda turns=turns: next(turns))}


def _fusion_in_turns(bench: Bench, fuser: Fuser, next_mix: Callable[[], Any]) -> Figures:
    clock = clock_of(bench.device)
    copy_ms, fuse_ms, commit_ms = [], [], []
    for _ in range(bench.repeats + 1):
        copy_ms.append(clock(lambda: [slab.standby.copy_(slab.base) for slab in fuser.slabs])[0])
        fuse_ms.append(clock(lambda: fuser.fuse_standby(next_mix()))[0])
        prepared = fuser.prepare(next_mix())
        commit_ms.append(clock(lambda prepared=prepared: fuser.commit(prepared))[0])
    floor, fuse, commit = (Timing(tuple(item[1:])) for item in (copy_ms, fuse_ms, commit_ms))  # the first warms up
    return {
        "copy": floor.as_dict(),
        "fuse": fuse.as_dict(),
        "commit": commit.as_dict(),
        "fuse_over_copy": fuse.median / floor.median,
        "commit_over_copy": commit.median / floor.median,
    }


def stall_phase(bench: Bench) -> Iterator[Figures]:
    """What fusing at 2 Hz costs the frames beside it."""
    size = bench.sizes[0]
    figures = measure_stall(size, bench.seconds, bench.device)
    yield {"size": size, **{key: value for key, value in figures.items() if key != "histogram_ms"}}


def endurance_phase(bench: Bench) -> Iterator[Figures]:
    """100 fusions with frames between them: does anything grow, is anything captured again, do the bits come back?"""
    with tempfile.TemporaryDirectory() as folder, counted_graphs() as graphs:
        parts = random_parts(bench.sizes[0], Path(folder), inference=InferenceConfig(device=bench.device))
        pipeline, frame = PerceptionPipeline(parts), Frame(image=bench.image(), stamp_ns=0)
        mixes = [mix_of(np.random.default_rng(seed).dirichlet(np.ones(5))) for seed in range(8)]

        def fused(index: int) -> np.ndarray:
            pipeline.apply_mix(mixes[index % len(mixes)], "parameters")
            return pipeline.segment(frame).mask

        first = fused(0)
        weights = [slab.clone() for slab in pipeline.model.state_dict().values()]
        for index in range(len(mixes)):  # what is allocated once has been
            fused(index)
        captured, held = graphs.captures, _held_bytes(bench)
        for index in range(ENDURANCE):
            fused(index)
        growth, captured_again = _held_bytes(bench) - held, graphs.captures - captured
        last = fused(0)
        same = all(torch.equal(a, b) for a, b in zip(weights, pipeline.model.state_dict().values(), strict=True))
        notes = parts.engine.notes if isinstance(parts.engine, TorchEngine) else []
        pipeline.close()
    yield {
        "fusions": ENDURANCE,
        "captures_at_warm_up": captured,
        "captures": captured_again,
        "replays": graphs.replays,
        "growth_mib": growth / 2**20,
        "bits_differ": int(not (same and np.array_equal(first, last))),
        "notes": notes,
    }


def _held_bytes(bench: Bench) -> int:
    """Of the device, what tensors hold; without one, nothing is compared."""
    if not bench.is_cuda:
        return 0
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def recapture_phase(bench: Bench) -> Iterator[Figures]:
    """The vocabulary changes, and with it the graph, while another thread fuses without a pause."""
    with tempfile.TemporaryDirectory() as folder, counted_graphs() as graphs:
        inference = InferenceConfig(device=bench.device, precision="fp32")
        parts = random_parts(bench.sizes[0], Path(folder), inference=inference)
        pipeline, frame = PerceptionPipeline(parts), Frame(image=bench.image(), stamp_ns=0)
        before, stop, problems = graphs.captures, threading.Event(), list[str]()
        fusing = threading.Thread(target=_fuse_until, args=(pipeline, stop, problems), daemon=True)
        first_frames_ms = []
        fusing.start()
        try:
            for count in VOCABULARIES:
                pipeline.set_classes(class_list(count))
                start = time.perf_counter()
                pipeline.segment(frame)
                first_frames_ms.append((time.perf_counter() - start) * 1e3)
                for _ in range(10):
                    pipeline.segment(frame)
        finally:
            stop.set()
            fusing.join()
        given = pipeline.segment(frame, want_confidence=False).mask
        maps = predict_maps("whole")(pipeline.model, frame.image, pipeline.text_features)
        expected = maps.argmax(dim=0).cpu().numpy()
        notes = parts.engine.notes if isinstance(parts.engine, TorchEngine) else []
        fusions = pipeline.generation.number
        pipeline.close()
    yield {
        "vocabularies": list(VOCABULARIES),
        "captures": graphs.captures - before,
        "fusions": fusions,
        "first_frame_ms": first_frames_ms,
        "mask_agreement": agreement([given], [expected]),
        "problems": len(problems) + len(notes),
        "notes": [*problems, *notes],
    }


def _fuse_until(pipeline: PerceptionPipeline, stop: threading.Event, problems: list[str]) -> None:
    rng = np.random.default_rng(0)
    while not stop.is_set():
        try:
            pipeline.apply_mix(mix_of(rng.dirichlet(np.ones(5))), "parameters")
        except Exception as error:  # whatever fails is what this phase looks for
            problems.append(f"{type(error).__name__}: {error}")
            return


def memory_phase(bench: Bench) -> Iterator[Figures]:
    """What a serving process takes of the device, by size and memory policy, each in a process of its own."""
    for size in bench.sizes:
        for memory in ("double", "single"):
            yield {f"{size}_{memory}": serve_apart(size, 20, memory, bench.device)}


def compile_phase(bench: Bench) -> Iterator[Figures]:
    """`compile: true` against what is served without it."""
    size = bench.sizes[0]
    model, image = random_model(size, device=bench.device), bench.image()
    with torch.inference_mode():
        text = model.encode_text(random_tokens(model, CLASSES).to(bench.device))
    plain = _engine(bench, copy.deepcopy(model), "whole", text, is_eager=False)
    config = InferenceConfig(device=bench.device, precision=bench.half, compile=True)  # type: ignore[arg-type]
    engine = TorchEngine(model, config, probe_images=[random_image(192, 256)])
    engine.set_text(text)
    start = time.perf_counter()
    engine.warm_up()
    yield {"size": size, "warm_up_s": time.perf_counter() - start, "notes": engine.notes, "precision": engine.precision}
    runs = [lambda one=one: one.segment(image, False) for one in (plain, engine)]
    served, compiled = time_alternating(runs, 3 * bench.repeats, clock=clock_of(bench.device))
    yield {"served": served.as_dict(), "compiled": compiled.as_dict()}
    yield {"speedup_vs_served": served.median / compiled.median}


PHASES: dict[str, Callable[[Bench], Iterator[Figures]]] = {
    "machine": machine_phase,
    "tests": tests_phase,
    "parity": parity_phase,
    "frame_small": lambda bench: frame_phase(bench, bench.sizes[0]),
    "frame_large": lambda bench: frame_phase(bench, bench.sizes[-1]),
    "fusion": fusion_phase,
    "stall": stall_phase,
    "endurance": endurance_phase,
    "recapture": recapture_phase,
    "memory": memory_phase,
    "compile": compile_phase,
}


def main() -> None:
    """Run one phase; after each of its parts the file holds all figures so far."""
    parser = argparse.ArgumentParser()
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    figures: Figures = {}
    for part in PHASES[options.phase](DRY if options.dry else ON_A_GPU):
        figures |= part
        write_atomically(options.file, json.dumps(figures))


if __name__ == "__main__":
    main()
