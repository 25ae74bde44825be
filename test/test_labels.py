"""Names and colours of classes."""

import json

import numpy as np

from semla_ros.lab.world.classes import CLASS_NAMES
from semla_ros.labels import STREET_COLOURS, colour_of, labels_json, overlay, palette_of


def test_overlay_mixes_by_alpha_and_leaves_unlabelled_pixels_alone() -> None:
    palette = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)
    image = np.full((1, 2, 3), 100, np.uint8)
    picture = overlay(image, np.array([[1, 255]], np.uint8), palette, alpha=0.5)
    np.testing.assert_allclose(picture[0, 0], [150, 100, 75], atol=1)
    np.testing.assert_array_equal(picture[0, 1], [100, 100, 100])


def test_the_worlds_classes_have_the_customary_colours() -> None:
    assert len(STREET_COLOURS) == 19
    colours = [tuple(colour) for colour in palette_of(CLASS_NAMES).tolist()]
    assert [STREET_COLOURS[name] for name in CLASS_NAMES] == colours


def test_colours_depend_on_the_name_only_and_labels_say_all() -> None:
    assert colour_of("Road") == (128, 64, 128)
    assert colour_of("unicorn") == colour_of("unicorn") != colour_of("dragon")
    told = json.loads(labels_json(["road", "straße"], version=4))
    assert told["version"] == 4
    assert [(item["id"], item["name"]) for item in told["classes"]] == [(0, "road"), (1, "straße")]
    assert (told["unlabelled"], told["encoding"]) == (255, "mono8")
    assert json.loads(labels_json([str(index) for index in range(255)], 0))["unlabelled"] == 65535


def test_the_overlay_blends_classes_and_leaves_the_rest() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    mask = np.array([[0, 1, 255]], np.uint8)
    palette = palette_of(["road", "sky"])
    blended = overlay(image, mask, palette, 1.0)
    assert np.array_equal(blended[0], [palette[0], palette[1], (100, 100, 100)])
    assert np.array_equal(overlay(image, mask, palette, 0.0), image)
