from __future__ import annotations

import numpy as np
import pytest

from semla_ros.lab.report.embedding_map import Plane, Scenery, embedding_map
from semla_ros.lab.report.label_places import SIDES, label_places
from semla_ros.lab.report.library_report import map_picture


def box(mark: tuple[float, float], width: float, side: tuple) -> tuple[float, float, float, float]:
    dx, dy, anchor = side
    left = mark[0] + dx - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
    return left, mark[1] + dy - 10, left + width, mark[1] + dy + 3


@pytest.mark.parametrize("count", [1, 20, 200])
def test_no_name_covers_another_or_a_mark_or_leaves_the_plot(count: int) -> None:
    generator = np.random.default_rng(count)
    marks = [(float(x), float(y)) for x, y in generator.uniform((0, 0), (600, 400), (count, 2))]
    widths = generator.uniform(20, 130, count).tolist()
    sides = label_places(marks, widths, (600, 400))
    boxes = [box(*item) for item in zip(marks, widths, sides, strict=True) if item[2] is not None]
    assert boxes
    for index, one in enumerate(boxes):
        assert 0 <= one[0] < one[2] <= 600
        assert 0 <= one[1] < one[3] <= 400
        for other in boxes[index + 1 :]:
            assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
        assert not any(one[0] < x < one[2] and one[1] < y < one[3] for x, y in marks)


def test_a_name_with_room_stands_to_the_right_and_one_at_the_border_to_the_left() -> None:
    assert label_places([(50, 50), (590, 50)], [60, 60], (600, 400)) == [SIDES[0], SIDES[1]]
    assert label_places([(50, 50)], [900], (600, 400)) == [None]


def test_the_plane_keeps_distances_of_what_lies_in_it() -> None:
    points = np.zeros((4, 9))
    points[:, 3], points[:, 5] = (0, 4, 0, 4), (0, 0, 3, 3)
    plane = Plane.through(points)
    placed = plane.place(points)
    assert np.linalg.norm(placed[0] - placed[3]) == pytest.approx(5)
    assert sum(plane.explained) == pytest.approx(1)
    assert Plane.through(points[:1]).place(points[:1]).tolist() == [[0, 0]]


def test_spreads_and_images_are_drawn_and_named() -> None:
    scenery = Scenery(
        points={"fog": np.eye(6)[:3]},
        centroids={"fog": np.eye(6)[0], "<night>": np.eye(6)[4]},
        families={"fog": "fog"},
        spreads={"fog": 0.5},
        images={"photo & co.jpg": np.eye(6)[5]},
    )
    svg = embedding_map(scenery).svg
    assert svg.count("<ellipse") == 1
    assert "spread of fog" in svg
    assert "photo &amp; co.jpg" in svg
    assert "&lt;night&gt;" in svg
    assert map_picture(scenery, r"$\frac$ is no formula here", {}).startswith(b"\x89PNG")
