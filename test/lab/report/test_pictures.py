import numpy as np
from PIL import Image

from semla_ros.lab.report.palette import domain_colour
from semla_ros.lab.report.pictures import (
    Canvas,
    colourise,
    draw_legend,
    draw_mix,
    resize,
)
from semla_ros.results import BASE_MODEL

PALETTE = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)


def test_every_class_gets_its_colour_and_unlabelled_is_black() -> None:
    picture = colourise(np.array([[0, 1], [255, 2]], np.uint8), PALETTE)
    np.testing.assert_array_equal(picture, [[[10, 20, 30], [200, 100, 50]], [[0, 0, 0], [0, 0, 0]]])


def test_sixteen_bit_masks_are_painted_too() -> None:
    assert (colourise(np.array([[1, 65535]], np.uint16), PALETTE)[0, 0] == PALETTE[1]).all()


def test_a_mix_is_drawn_in_proportion_to_its_shares() -> None:
    canvas = Canvas(200, 20)
    draw_mix(canvas, {"night": 0.75, BASE_MODEL: 0.25}, 0, 0, 200, 20)
    row = canvas.array()[1]
    assert abs((row == domain_colour("night")).all(axis=1).sum() - 150) <= 2
    assert abs((row == domain_colour(BASE_MODEL)).all(axis=1).sum() - 50) <= 2


def test_a_legend_shows_every_colour_and_breaks_lines_at_the_edge() -> None:
    canvas = Canvas(120, 100)
    draw_legend(canvas, ["road", "vegetation"], PALETTE, 4, 12, size=13)
    first, second = ((canvas.array() == colour).all(axis=2) for colour in PALETTE)
    assert first.sum() > 100
    assert second.sum() > 100
    assert np.nonzero(first)[0].max() < np.nonzero(second)[0].min()


def test_masks_are_enlarged_without_new_colours() -> None:
    picture = colourise(np.eye(4, dtype=np.uint8), PALETTE)
    enlarged = resize(picture, 13, 11, smooth=False)
    assert enlarged.shape == (11, 13, 3)
    assert {tuple(colour) for colour in enlarged.reshape(-1, 3)} == {tuple(colour) for colour in PALETTE}


def test_text_leaves_ink_on_the_canvas_and_the_file_is_a_png(tmp_path) -> None:
    canvas = Canvas(100, 30, background=(0, 0, 0))
    canvas.text(2, 15, "mIoU 0.61", size=14)
    assert canvas.array().max() > 200
    canvas.save(tmp_path / "text.png")
    with Image.open(tmp_path / "text.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (100, 30))
