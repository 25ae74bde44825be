"""One vector per image that tells in which conditions it was taken: the image feature of a frozen CLIP.

The feature is used as it comes, not normalised, as in the published centroids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from semla_ros.adaptation.background import background_stream
from semla_ros.adaptation.scene_encoder_files import find_encoder
from semla_ros.adaptation.scene_image import ScenePreprocessing
from semla_ros.errors import ImageError
from semla_ros.results import ImageArray


class SceneEncoder:
    """A CLIP image tower with its preprocessing.

    Args:
        tower: Normalised images (B, 3, h, w) -> features (B, D).
        preprocessing: What it takes.
        id: Names the encoder in libraries ("ViT-L-14/openai", "semla-tiny/scene").
        dim: Length of an embedding, D.
        sha256: Digest of the file that the weights came from.
        device: Where to run.

    Attributes:
        id: See above.
        dim: See above.
        sha256: See above.
    """

    def __init__(
        self,
        tower: nn.Module,
        preprocessing: ScenePreprocessing,
        *,
        id: str,
        dim: int,
        sha256: str = "",
        device: str | torch.device = "cpu",
    ) -> None:
        self.id = id
        self.dim = dim
        self.sha256 = sha256
        self.preprocessing = preprocessing
        self.tower = tower.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        self._stream = background_stream(self._device)

    @classmethod
    def load(
        cls, source: str | Path, *, model_dir: str | Path = "", device: str | torch.device = "cpu"
    ) -> SceneEncoder:
        """Load an encoder.

        Args:
            source: A file of this package's own, or a folder with `scene_encoder.safetensors`; a CLIP vision
                model in the Hugging Face layout, file or folder; an open_clip model with published weights that have
                been fetched ("ViT-L-14/openai") or with a checkpoint ("ViT-L-14:/path/to/open_clip_model.safetensors").
            model_dir: Where published weights are looked for first; then `$SEMLA_MODEL_DIR`, the package's models and
                the Hugging Face cache.
            device: Where to run.

        Raises:
            CheckpointError: The weights are damaged or do not fit the architecture.
            ConfigError: There is no such file or model; the message says how to get it.
        """
        found = find_encoder(source, model_dir)
        return cls(found.tower, found.preprocessing, id=found.id, dim=found.dim, sha256=found.sha256, device=device)

    def embed(self, image: ImageArray) -> NDArray[np.float32]:
        """Embed one image.

        Args:
            image: RGB, shape (H, W, 3), uint8.

        Returns:
            Shape (D,), float32, not normalised.

        Raises:
            ImageError: The image is of another form, or its embedding is not finite.
        """
        embedding: NDArray[np.float32] = self.embed_batch([image])[0]
        return embedding

    def embed_batch(self, images: Sequence[ImageArray]) -> NDArray[np.float32]:
        """Embed several images, of any sizes, at once; shape (N, D). See `embed`."""
        if not images:
            return np.zeros((0, self.dim), np.float32)
        batch = np.stack([self.preprocessing.normalised(image) for image in images])
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            features = self.tower(torch.from_numpy(batch).to(self._device)).float().cpu().numpy()
        if not np.isfinite(features).all():
            raise ImageError(f"scene encoder '{self.id}' gave values that are not finite; load intact weights")
        return np.asarray(features, np.float32)
