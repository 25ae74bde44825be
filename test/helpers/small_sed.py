"""A random SED for images of 64 x 96 pixels, of dimensions unlike the published ones and those of the reference set."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_parts import CLASSES, MORE_WORDS, write_encoder

from semla_ros.adaptation.scene_encoder_files import ENCODER_FILE
from semla_ros.lab.training.weights_files import save_model
from semla_ros.segmentation.checkpoint import SEGMENTER_FILE
from semla_ros.segmentation.sed import Sed, SedConfig
from semla_ros.segmentation.sed_decoder import SedDecoderConfig
from semla_ros.segmentation.text_prompts import Vocabulary, templates

CONTEXT = 20  # tokens of a prompt


def small_sed(vocab_rows: int = 300, *, head: str = "mlp") -> Sed:
    """The same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    dims = (8, 12, 20, 28)
    config = SedConfig(
        visual_dims=dims,
        visual_depths=(1, 2, 1, 1),
        head=head,  # type: ignore[arg-type]
        drop=0.1 if head == "mlp" else 0.0,  # as published of this head
        embed_dim=36,
        text_width=64,
        text_layers=1,
        context_length=CONTEXT,
        vocab_rows=vocab_rows,
        decoder=SedDecoderConfig(
            hidden_dim=24, dims=(20, 12, 8), encoder_dims=dims[2::-1], guidance_dims=(6, 4, 3), kernels=(5, 3, 7)
        ),
        working_resolution=(64, 96),
    )
    return Sed(config).eval().requires_grad_(False)


def write_sed(folder: Path) -> Path:
    """Write it and a random scene encoder as a model folder."""
    texts = [template.format(name) for template in templates("imagenet") for name in (*CLASSES, *MORE_WORDS)]
    vocabulary = Vocabulary.from_texts(texts, CONTEXT)
    model = small_sed(len(vocabulary))
    save_model(
        model,
        folder / SEGMENTER_FILE,
        class_names=CLASSES,
        vocabulary=vocabulary,
        template="imagenet",
        model_id="small-sed",
    )
    write_encoder(folder / ENCODER_FILE)
    return folder
