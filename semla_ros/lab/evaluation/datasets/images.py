"""Images with their labels, read one at a time: the same for training and for evaluation."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from semla_ros.errors import DatasetError, ImageError
from semla_ros.image_files import read_image
from semla_ros.lab.evaluation.datasets.labels import Encoding
from semla_ros.lab.evaluation.datasets.layouts import SamplePaths
from semla_ros.results import UNLABELLED, ImageArray


class LabelledImages:
    """Images and label files in a fixed order.

    Args:
        paths: Which labels belong to which image.
        class_names: The class list of the encoding.
        encoding: How the labels are written.
        left_out: Classes of the list that take no part: their pixels are unlabelled, the others move up.

    Attributes:
        class_names: Its vocabulary, without what is left out.
        paths: See above.
    """

    def __init__(
        self,
        paths: Sequence[SamplePaths],
        class_names: Sequence[str],
        encoding: Encoding,
        left_out: Collection[str] = (),
    ) -> None:
        self.paths = list(paths)
        self.class_names = tuple(name for name in class_names if name not in left_out)
        self._list, self._encoding = tuple(class_names), encoding
        self._indices = np.full(256, UNLABELLED, np.uint8)  # index in the list -> index in the vocabulary
        for index, name in enumerate(self.class_names):
            self._indices[self._list.index(name)] = index
        self._sizes: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The image's file name."""
        return self.paths[index].image.name

    def image(self, index: int) -> ImageArray:
        """RGB image, upright, shape (H, W, 3), uint8.

        Raises:
            DatasetError: It is missing or unreadable.
        """
        try:
            image = read_image(self.paths[index].image)
        except ImageError as error:
            raise DatasetError(f"image {error}") from None
        self._sizes[index] = image.shape[:2]
        return image

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Class index per pixel, shape (H, W) of the image, uint8; 255 is not scored and not trained.

        Raises:
            DatasetError: The labels are missing or unreadable, hold an unknown value, or differ in size from the image.
        """
        paths = self.paths[index]
        labels = self._encoding.decode(self._list, paths.labels, paths.segments)
        size = self._sizes.get(index) or self.image(index).shape[:2]
        if labels.shape != size:
            raise DatasetError(
                f"label file {paths.labels} is {labels.shape[::-1]}, its image {paths.image} is {size[::-1]} pixels; "
                "expected the same height and width"
            )
        return np.asarray(self._indices[labels])
