"""The peer: the loop of the published system on peft, one new concatenated adapter for every image.

Scene embedding, weights, `add_weighted_adapter(..., combination_type="cat")`, activate, forward with the LoRA layers
in place, delete. It runs our model with `exact_rewrites` off, which is the published computation; class embeddings are
made for each image too, without which the published loop's masks are wrong after the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semla_ros.results import AdapterMix, FloatArray
from semla_ros.segmentation.model import CatSeg
from semla_ros.timing import Stopwatch
from semla_ros.torchvision_compat import import_peft

FUSED = "fused"


class PublishedLoop:
    """A peft model with every adapter of a library loaded.

    Args:
        model: Base weights; taken over and changed.
        library: Folder in the published layout.
        names: Adapters to load.
    """

    def __init__(self, model: CatSeg, library: Path, names: Sequence[str]) -> None:
        model.exact_rewrites = False
        peft = import_peft()
        first, *rest = names
        self._peft: Any = peft.PeftModel.from_pretrained(model, str(library / first), adapter_name=first)
        for name in rest:
            self._peft.load_adapter(str(library / name), adapter_name=name)
        self._peft.eval()
        self.model = model  # the same modules, with LoRA layers in the place of the targets

    def fuse(self, mix: AdapterMix) -> None:
        """Concatenate the adapters of a mix into a new one and activate it."""
        self._peft.base_model.add_weighted_adapter(
            list(mix.names), [float(weight) for weight in mix.weights], FUSED, combination_type="cat"
        )
        self._peft.set_adapter(FUSED)

    def forget(self) -> None:
        """Delete the concatenated adapter."""
        self._peft.delete_adapter(FUSED)

    def merge(self) -> None:
        """Add the active adapter into the weights."""
        self._peft.merge_adapter()

    def unmerge(self) -> None:
        """Take it out of the weights again, as far as rounding lets it."""
        self._peft.unmerge_adapter()

    def segment(
        self,
        image: np.ndarray,
        embed: Callable[[np.ndarray], FloatArray],
        retrieve: Callable[[FloatArray], AdapterMix],
        tokens: Tensor,
        predict: Callable[[CatSeg, np.ndarray, Tensor], Tensor],
        watch: Stopwatch,
    ) -> Tensor:
        """One turn of the loop.

        Args:
            image: RGB, shape (H, W, 3), uint8.
            embed: Scene encoder.
            retrieve: Scene embedding -> mix.
            tokens: Class prompts.
            predict: Model, image and class embeddings -> the answer.
            watch: Takes the cost of each step.

        Returns:
            What `predict` does.
        """
        with watch.stage("embed"):
            embedding = embed(image)
        with watch.stage("retrieve"):
            mix = retrieve(embedding)
        with watch.stage("fuse"):
            self.fuse(mix)
        with torch.no_grad():
            with watch.stage("text"):
                text = self.model.encode_text(tokens)
            with watch.stage("forward"):
                answer = predict(self.model, image, text)
        with watch.stage("delete"):
            self.forget()
        return answer
