import numpy as np

from semla_ros.lab.world.classes import CLASS_NAMES, PALETTE
from semla_ros.labels import STREET_COLOURS, overlay


def test_overlay_mixes_by_alpha_and_leaves_unlabelled_pixels_alone() -> None:
    palette = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)
    image = np.full((1, 2, 3), 100, np.uint8)
    picture = overlay(image, np.array([[1, 255]], np.uint8), palette, alpha=0.5)
    np.testing.assert_allclose(picture[0, 0], [150, 100, 75], atol=1)
    np.testing.assert_array_equal(picture[0, 1], [100, 100, 100])


def test_the_worlds_classes_have_the_customary_colours() -> None:
    assert len(STREET_COLOURS) == 19
    assert [STREET_COLOURS[name] for name in CLASS_NAMES] == [tuple(colour) for colour in PALETTE.tolist()]
