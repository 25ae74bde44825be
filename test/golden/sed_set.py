"""How the tests read the reference set of SED. Dimensions, names and strides are read from the set's own files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference_set import largest_error, read_arrays, read_json
from torch import Tensor

from semla_ros.segmentation.checkpoint import LoadedModel, load_model, read_weights
from semla_ros.segmentation.inference import normalise, resize
from semla_ros.segmentation.sed import Sed, SedConfig
from semla_ros.segmentation.sed_decoder import SedDecoderConfig
from semla_ros.segmentation.text_prompts import Vocabulary

EVERY = re.compile(r"(?P<name>.+?)(?:_every(?P<step>\d+))?")


def told_config(values: Mapping[str, Any]) -> SedConfig:
    """The architecture that a set's `config.json` tells."""
    visual, text, decoder = values["visual"], values["text"], values["decoder"]
    return SedConfig(
        visual_dims=tuple(visual["dims"]),
        visual_depths=tuple(visual["depths"]),
        head=visual["head"],
        embed_dim=visual["embed_dim"],
        text_width=text["width"],
        text_layers=text["layers"],
        context_length=text["context_length"],
        vocab_rows=text["vocab_rows"],
        decoder=SedDecoderConfig(
            templates=decoder["prompt_channels"],
            hidden_dim=decoder["hidden_dim"],
            dims=tuple(decoder["decoder_dims"]),
            encoder_dims=tuple(decoder["decoder_guidance_dims"]),
            guidance_dims=tuple(decoder["decoder_guidance_proj_dims"]),
            kernels=tuple(decoder["kernel_sizes"]),
            heads=decoder["heads"],
            pooling=tuple(decoder["pooling"]),
        ),
        working_resolution=tuple(values["working_resolution"]),
        pixel_mean=tuple(values["pixel_mean"]),
        pixel_std=tuple(values["pixel_std"]),
    )


class SedSet:
    """A reference set.

    Args:
        folder: With the files that its README describes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self.inputs, self.text, self.tokens, self.stages, self.variants = (
            read_arrays(folder / f"{name}.npz") for name in ("inputs", "text", "tokens", "stages", "variants")
        )
        self.vocabulary = Vocabulary(
            self.tokens["vocab_bpe_ids"].tolist(), self.config["text"]["context_length"], cuts_long_prompts=True
        )
        self._text: dict[str, Tensor] = {"base": torch.from_numpy(self.text["base"])}

    def load(self, *, pooling: tuple[int, int] | None = None, head: str = "", **changes: Any) -> LoadedModel:
        """A fresh model; `head` names a file whose tensors replace those of the image head."""
        config = told_config(self.config)
        if pooling is not None:
            changes["decoder"] = replace(config.decoder, pooling=pooling)
        if not head:
            return load_model(self.folder / "checkpoint.safetensors", config=replace(config, **changes))
        tensors, _ = read_weights(self.folder / "checkpoint.safetensors")
        tensors = {name: item for name, item in tensors.items() if ".visual.head." not in name}
        tensors |= read_weights(self.folder / head)[0]
        path = changes.pop("path")
        torch.save({"model": tensors, "iteration": 1}, path)
        other = SedConfig.of_tensors(Sed.own_names(tensors)).head
        return load_model(path, config=replace(config, head=other, **changes))

    def classes(self, name: str, model: Sed) -> Tensor:
        """Class embeddings of a class list of the set: "base", "mid", "many"."""
        if name not in self._text:
            with torch.no_grad():
                ids = self.vocabulary.tokenize(self.config[f"{name}_classes"], "imagenet")
                self._text[name] = model.encode_text(ids)
        return self._text[name]

    def image(self, index: int) -> Tensor:
        """Image `img<index>`, (3, H, W) uint8."""
        return torch.from_numpy(self.inputs[f"img{index}"])

    def view(self, image: Tensor, config: SedConfig, size: tuple[int, int] | None = None) -> Tensor:
        """An image (3, H, W) at a working resolution, as published: normalised first, no antialiasing."""
        return resize(normalise(image[None], config), size or config.working_resolution)


def published_maps(logits: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (T, h, w) to maps (T, *size), cropped to the image's own size first: a defect, see docs/compat.md."""
    height, width = image.shape[-2:]
    return resize(logits.sigmoid()[:, :height, :width][None], size)[0]


def assert_close(actual: Tensor, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Within a tolerance, relative to the largest value."""
    assert largest_error(actual, expected) <= tolerance * np.abs(expected).max(), name
