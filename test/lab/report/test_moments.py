import numpy as np
import pytest
from PIL import Image

from semla_ros.lab.report.moments import GOOD, Moment, Panel, draw_row, write_contact_sheet
from semla_ros.lab.report.palette import domain_colour
from semla_ros.lab.report.pictures import FAINT_TEXT

NAMES = ("road", "sky")
PALETTE = np.array([[128, 64, 128], [70, 130, 180]], np.uint8)
MASK_COLOUR, IMAGE_COLOUR = (128, 64, 128), (200, 180, 40)


def plain(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((48, 64, 3), colour, np.uint8)


def moment(name: str = "fog", *, mask: np.ndarray | None = None) -> Moment:
    panels = [
        Panel(title="camera", picture=plain(IMAGE_COLOUR), is_mask=False),
        Panel(title="base", picture=plain(MASK_COLOUR), miou=0.12),
        Panel(title="semla", picture=mask, miou=0.45, is_strong=True),
    ]
    return Moment(name=name, place="3.2 s, generation 4", panels=panels, shares={"fog": 0.7, "rain": 0.3})


def share_of(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(picture.astype(int) - colour).max(axis=2) <= 2).mean())


def test_a_row_has_all_panels_in_exact_colours_and_the_mix_below() -> None:
    picture = draw_row(moment(mask=plain(MASK_COLOUR)), "0.20 → 0.40", NAMES, PALETTE)
    panel = 384 * 288 / (picture.shape[0] * picture.shape[1])
    assert share_of(picture, IMAGE_COLOUR) == pytest.approx(panel, rel=0.01)
    assert share_of(picture, MASK_COLOUR) == pytest.approx(2 * panel, rel=0.02)
    for name in ("fog", "rain"):
        assert share_of(picture, domain_colour(name)) > 0.003, name
    assert share_of(picture, GOOD) > share_of(draw_row(moment(), "", NAMES, PALETTE), GOOD) > 0
    assert share_of(picture, FAINT_TEXT) > 0


def test_a_panel_without_a_picture_stays_empty() -> None:
    full, empty = (draw_row(moment(mask=mask), "", NAMES, PALETTE) for mask in (plain(MASK_COLOUR), None))
    assert full.shape == empty.shape
    assert share_of(empty, MASK_COLOUR) == pytest.approx(share_of(full, MASK_COLOUR) / 2, rel=0.02)


def test_a_contact_sheet_has_a_column_per_moment_and_a_row_per_panel(tmp_path) -> None:
    moments = [moment(name, mask=plain(MASK_COLOUR)).shrunk() for name in ("clear", "fog", "night")]
    write_contact_sheet(tmp_path / "sheet.png", moments, NAMES, PALETTE)
    with Image.open(tmp_path / "sheet.png") as sheet:
        picture = np.asarray(sheet.convert("RGB"))
    assert 3 * 256 < picture.shape[1] < 4 * 256
    assert 3 * 192 < picture.shape[0] < 4 * 192
    assert share_of(picture, IMAGE_COLOUR) * picture.shape[0] * picture.shape[1] == pytest.approx(
        3 * 256 * 192, rel=0.01
    )
    assert share_of(picture, domain_colour("fog")) > 0.005


def test_the_legend_of_a_narrow_sheet_has_every_class(tmp_path) -> None:
    names = [f"a class with a long name {index}" for index in range(9)]
    palette = np.array([[250, 20 * index, 7] for index in range(9)], np.uint8)
    write_contact_sheet(tmp_path / "sheet.png", [moment(mask=plain(MASK_COLOUR)).shrunk()], names, palette)
    with Image.open(tmp_path / "sheet.png") as sheet:
        picture = np.asarray(sheet.convert("RGB"))
    assert all(share_of(picture, tuple(map(int, colour))) > 0 for colour in palette)
