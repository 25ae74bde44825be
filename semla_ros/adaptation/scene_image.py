"""From a camera image to what a scene encoder takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semla_ros.results import ImageArray, check_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP, RGB on the 0..1 scale
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OWN_KEY = "open_clip_vision_cfg"  # in the metadata of an encoder in this package's own form: its architecture

ResizeMode = Literal["stretch", "shortest_crop"]


@dataclass(frozen=True, kw_only=True)
class ScenePreprocessing:
    """How an image is resized and normalised.

    Attributes:
        height: Of the encoder's input in pixels.
        width: Likewise.
        resize: "shortest_crop": the shortest edge with Pillow's bicubic filter, then the centre, as published, which
            discards the sides of wide images; "stretch": the whole image, averaged over areas.
        mean: Per channel, RGB on the 0..1 scale.
        std: Likewise.
    """

    height: int
    width: int
    resize: ResizeMode = "shortest_crop"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def resized(self, image: ImageArray) -> ImageArray:
        """The image in the encoder's size, shape (height, width, 3), uint8.

        Args:
            image: RGB, shape (H, W, 3), uint8.

        Raises:
            ImageError: The image is of another form.
        """
        check_image(image, "scene image: ")
        if self.resize == "stretch":
            return np.asarray(cv2.resize(image, (self.width, self.height), interpolation=cv2.INTER_AREA), np.uint8)
        rows, columns = image.shape[:2]
        scale = max(self.height / rows, self.width / columns)
        # The longer edge is cut down to whole pixels, as torchvision does.
        size = (max(self.width, int(scale * columns)), max(self.height, int(scale * rows)))
        picture = Image.fromarray(image)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = round((size[0] - self.width) / 2), round((size[1] - self.height) / 2)
        return np.asarray(picture.crop((left, top, left + self.width, top + self.height)), np.uint8)

    def normalised(self, image: ImageArray) -> NDArray[np.float32]:
        """The encoder's input, shape (3, height, width), float32, from an image as `resized` takes it."""
        values = self.resized(image).astype(np.float32) / np.float32(255)
        values -= np.array(self.mean, np.float32)
        values /= np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))
