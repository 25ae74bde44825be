import numpy as np
import pytest

from semla_ros.errors import ImageError
from semla_ros.lab.demo.frame_store import FrameStore


def test_pictures_come_back_exactly_in_any_order(tmp_path) -> None:
    rng = np.random.default_rng(0)
    images = {stamp: rng.integers(0, 256, (9, 7, 3), np.uint8) for stamp in (30, 10, 20)}
    masks = {stamp: rng.integers(0, 12, (9, 7), np.uint8) for stamp in (10, 20)}
    with FrameStore(tmp_path / "frames.bin") as store:
        for stamp, image in images.items():
            store.add("image", stamp, image)
        for stamp, mask in masks.items():
            store.add("mask", stamp, mask)
        for stamp in (20, 10, 30):
            np.testing.assert_array_equal(store.get("image", stamp), images[stamp])
        np.testing.assert_array_equal(store.get("mask", 10), masks[10])
        assert store.stamps("image") == [10, 20, 30]
        assert store.stamps("image", "mask") == [10, 20]
        assert ("mask", 30) not in store


def test_a_second_picture_of_the_same_stamp_replaces_the_first(tmp_path) -> None:
    with FrameStore(tmp_path / "frames.bin") as store:
        for value in (1, 2):
            store.add("mask", 5, np.full((3, 3), value, np.uint8))
        assert (store.get("mask", 5) == 2).all()


def test_the_file_is_gone_after_closing(tmp_path) -> None:
    with FrameStore(tmp_path / "frames.bin") as store:
        store.add("mask", 5, np.zeros((3, 3), np.uint8))
        assert (tmp_path / "frames.bin").exists()
    assert not (tmp_path / "frames.bin").exists()


@pytest.mark.parametrize("picture", [np.zeros((3, 3), np.float32), np.zeros((0, 3), np.uint8)])
def test_what_is_no_picture_is_named(tmp_path, picture) -> None:
    with FrameStore(tmp_path / "frames.bin") as store, pytest.raises(ImageError, match="mask at 5 ns"):
        store.add("mask", 5, picture)
