"""Installs the toy model's package, as far as entry points go, and writes a model folder of it."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_parts import CLASSES, CONTEXT, MORE_WORDS, write_encoder
from toy_model import Toy, ToyConfig

from semla_ros.adaptation.scene_encoder_files import ENCODER_FILE
from semla_ros.lab.training.weights_files import save_model
from semla_ros.segmentation.checkpoint import SEGMENTER_FILE
from semla_ros.segmentation.text_prompts import SINGLE_TEMPLATE, Vocabulary


def install_toy(site: Path, module: str = "toy_model:Toy") -> Path:
    """A folder for `sys.path` with the metadata of a package that brings models of the kind "toy"."""
    metadata = site / "toy_segmenter-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-segmenter\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[semla_ros.models]\ntoy = {module}\n")
    return site


def write_toy(folder: Path) -> Path:
    """Write a random toy and a random scene encoder as a model folder."""
    vocabulary = Vocabulary.from_texts([SINGLE_TEMPLATE.format(name) for name in (*CLASSES, *MORE_WORDS)], CONTEXT)
    torch.manual_seed(0)
    model = Toy(ToyConfig(vocab_rows=len(vocabulary)))
    save_model(model, folder / SEGMENTER_FILE, class_names=CLASSES, vocabulary=vocabulary, model_id="toy")
    write_encoder(folder / ENCODER_FILE)
    return folder
