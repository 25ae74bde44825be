from typing import Any

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from semla_ros.lab.report.palette import domain_colour
from semla_ros.lab.report.timeline_picture import draw_timeline, most_used
from semla_ros.results import BASE_MODEL

SEGMENTS = ["clear"] * 10 + ["transition"] * 3 + ["night"] * 10 + ["transition"] * 3 + ["clear"] * 10
VISITS = [{"segment": "clear", "miou": 0.61}, {"segment": "night", "miou": 0.3}, {"segment": "clear", "miou": 0.72}]


def variant(miou: float, **weights: list[float]) -> dict:
    return {"miou": [None, *[miou] * (len(SEGMENTS) - 1)], "weights": weights}


def drawn(path, reference: str | None = "base") -> np.ndarray:
    count = len(SEGMENTS)
    night = [0.0] * 10 + [0.8] * 13 + [0.0] * 13
    timeline = {
        "bin_s": 0.5,
        "t": [0.25 + 0.5 * index for index in range(count)],
        "segment": SEGMENTS,
        "variants": {
            "base": variant(0.2, **{BASE_MODEL: [1.0] * count}),
            "semla": variant(0.5, night=night, fog=[0.1] * count, **{BASE_MODEL: [0.9 - share for share in night]}),
        },
    }
    entry = {"miou": 0.4, "shifted_miou": 0.3, "visits": VISITS}
    summary = {"primary": "semla", "reference": reference, "variants": {"base": entry, "semla": entry}}
    draw_timeline(path, summary, {"timeline": timeline, "changes": [{"t": 5.0}, {"t": 6.0}]})
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_the_picture_shows_the_colours_of_the_adapters_in_use_and_both_lines(tmp_path) -> None:
    pixels = drawn(tmp_path / "timeline.png")
    assert pixels.shape[1] > 1500
    for name in ("night", "fog", BASE_MODEL):
        assert (np.abs(pixels - domain_colour(name)).max(axis=2) <= 2).mean() > 0.005, name
    for colour in ((0x0F, 0x76, 0x6E), (0x9A, 0xA3, 0xAF)):
        assert (np.abs(pixels - colour).max(axis=2) <= 2).mean() > 0.0005, colour


def test_a_stretch_that_comes_back_has_figures_of_its_own(tmp_path, monkeypatch) -> None:
    written, write = [], Axes.text

    def noted(axes: Axes, x: float, y: float, words: str, **style: Any) -> Any:
        written.append(words)
        return write(axes, x, y, words, **style)

    monkeypatch.setattr(Axes, "text", noted)
    drawn(tmp_path / "timeline.png")
    assert [words for words in written if "→" in words] == ["0.61 → 0.61", "0.30 → 0.30", "0.72 → 0.72"]


def test_one_variant_alone_is_drawn_as_well(tmp_path) -> None:
    pixels = drawn(tmp_path / "timeline.png", reference=None)
    assert (np.abs(pixels - (0x0F, 0x76, 0x6E)).max(axis=2) <= 2).mean() > 0.0005


def test_a_legend_names_the_most_used_adapters_and_adds_up_the_rest() -> None:
    shares = {f"a{index}": [0.01 * (9 - index)] * 3 for index in range(8)} | {
        BASE_MODEL: [0.2] * 3,
        "unused": [0.0] * 3,
    }
    kept = most_used(shares, 5)
    assert list(kept) == ["a0", "a1", "a2", "a3", "a4", "others", BASE_MODEL]
    np.testing.assert_allclose(sum(kept.values()), np.sum([*shares.values()], axis=0))
    assert list(most_used(shares, 8)) == [*list(shares)[:8], BASE_MODEL]
