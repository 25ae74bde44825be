"""A pipeline in a process of its own: memory and retrieval time by the size of model and library."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from bench.random_world import Size, random_image, random_parts
from bench.timing import time_runs
from semla_ros.adaptation.retrieval import Retriever
from semla_ros.config import InferenceConfig
from semla_ros.pipeline import PerceptionPipeline
from semla_ros.resources import share_folder
from semla_ros.results import Frame
from semla_ros.serving.peak_memory import peak_resident_bytes

RETRIEVALS = 200


def serve(size: Size, adapters: int, memory: str = "double", device: str = "cpu") -> dict[str, float]:
    """Load, adapt to a few scenes, segment; then look at time and memory of this process."""
    names = [f"domain-{index:05d}" for index in range(adapters)]
    inference = InferenceConfig(device=device, memory="single" if memory == "single" else "double")
    with tempfile.TemporaryDirectory() as folder:
        parts = random_parts(size, Path(folder), inference=inference, adapters=names)
        pipeline = PerceptionPipeline(parts)
        for second in range(3):
            pipeline.process(Frame(image=random_image(192, 256, seed=second), stamp_ns=second * 10**9))
        retriever = Retriever(parts.library)
        queries = np.random.default_rng(1).normal(size=(RETRIEVALS, parts.encoder.dim)).astype(np.float32)
        turns = iter(np.concatenate([queries, queries]))
        retrieval = time_runs(lambda: retriever.retrieve(next(turns)), RETRIEVALS, warm_up=10)
        resident = psutil.Process().memory_info().rss
        peak = peak_resident_bytes()  # loading and fusing may need more than serving does
        adapted = pipeline.status().adapted_weights_bytes
        pipeline.close()
    return {
        "adapters": adapters,
        "retrieve_median_ms": retrieval.median,
        "retrieve_p99_ms": retrieval.percentile(99),
        "resident_mib": resident / 2**20,
        "peak_mib": peak / 2**20,
        **(_on_device() if device == "cuda" else {}),
        "adapted_weights_mib": adapted / 2**20,
        "weights_mib": _mib(parts.model),
        "encoder_mib": _mib(parts.encoder.tower),
    }


def _on_device() -> dict[str, float]:
    """Memory of the GPU: the most that tensors held at once, and what is in use beside them, by whatever process."""
    free, total = torch.cuda.mem_get_info()
    return {
        "device_mib": torch.cuda.max_memory_allocated() / 2**20,
        "beside_tensors_mib": (total - free - torch.cuda.memory_reserved()) / 2**20,
    }


def _mib(module: nn.Module) -> float:
    return sum(item.nbytes for item in module.parameters()) / 2**20


def serve_apart(size: Size, adapters: int, memory: str = "double", device: str = "cpu") -> dict[str, float]:
    """`serve` in a process of its own, so that nothing else counts into its memory."""
    environment = dict(os.environ)
    paths = [str(share_folder()), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-m", "bench.serving", size, str(adapters), memory, device]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Print the figures of one process as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size")
    parser.add_argument("adapters", type=int)
    parser.add_argument("memory")
    parser.add_argument("device")
    options = parser.parse_args()
    print(json.dumps(serve(options.size, options.adapters, options.memory, options.device)))


if __name__ == "__main__":
    main()
