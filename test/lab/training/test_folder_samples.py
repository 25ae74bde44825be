"""Folders of images and labels, and what is said when they do not fit."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from semla_ros.errors import DatasetError
from semla_ros.lab.training.batches import AugmentConfig, draw_batch
from semla_ros.lab.training.samples import ConcatenatedSamples, FolderSamples


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f"a{index}.png"), image[..., ::-1])
        suffix = "" if index else "_labelIds"
        cv2.imwrite(str(labels / f"a{index}{suffix}.png"), (image[..., 0] // 128).astype(np.uint8))
    return images, labels


def test_labels_are_matched_by_name_with_or_without_a_suffix(folders: tuple[Path, Path]) -> None:
    samples = FolderSamples(*folders, class_count=2)
    assert len(samples) == 3
    for index in range(3):
        assert np.array_equal(samples.mask(index), samples.image(index)[..., 0] // 128)


def test_a_batch_keeps_image_and_mask_together(folders: tuple[Path, Path]) -> None:
    samples = ConcatenatedSamples([FolderSamples(*folders, class_count=2)] * 2)
    mean, std = torch.zeros(3), torch.ones(3)
    augment = AugmentConfig(min_crop=1.0, brightness=0.0)
    generator = torch.Generator().manual_seed(3)
    images, masks = draw_batch(samples, 6, (24, 32), augment, generator, mean, std)
    assert images.shape == (6, 3, 24, 32)
    assert torch.equal((images[:, 0] // 128).long(), masks)
    again, _ = draw_batch(samples, 6, (24, 32), augment, torch.Generator().manual_seed(3), mean, std)
    assert torch.equal(images, again)


def test_square_crops_have_the_asked_size(folders: tuple[Path, Path]) -> None:
    samples = FolderSamples(*folders, class_count=2)
    augment = AugmentConfig(crop_size=16, brightness=0.0, flip=False)
    images, _ = draw_batch(
        samples, 2, (16, 16), augment, torch.Generator().manual_seed(0), torch.zeros(3), torch.ones(3), indices=[1, 1]
    )
    source = torch.from_numpy(samples.image(1)).permute(2, 0, 1).float()
    windows = source.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 16, 16)
    assert all(bool((windows == image).flatten(1).all(1).any()) for image in images)


@pytest.mark.parametrize("change", ["colour", "contrast", "gamma"])
def test_light_changes_the_image_and_not_the_mask(folders: tuple[Path, Path], change: str) -> None:
    samples = FolderSamples(*folders, class_count=2)
    plain = AugmentConfig(min_crop=1.0, brightness=0.0, flip=False)
    drawn = {}
    for name, augment in (("plain", plain), ("lit", replace(plain, **{change: 0.3}))):
        drawn[name] = draw_batch(
            samples, 1, (24, 32), augment, torch.Generator().manual_seed(5), torch.zeros(3), torch.ones(3), indices=[1]
        )
    (before, masks), (after, same) = drawn["plain"], drawn["lit"]
    assert torch.equal(masks, same)
    assert after.min() >= 0
    assert after.max() <= 255
    assert (after - before).abs().mean() > 1
    if change == "colour":
        inside = (after < 255) & (before > 0)
        gains = [(after[:, c] / before[:, c])[inside[:, c]] for c in range(3)]
        assert all(gain.std() < 1e-4 and 0.7 <= gain.mean() <= 1.3 for gain in gains)
        assert len({round(float(gain.mean()), 3) for gain in gains}) == 3
    else:  # one curve for all pixels, which keeps their order
        order = before.flatten().argsort(stable=True)
        assert bool((after.flatten()[order].diff() >= -1e-3).all())


def test_a_class_beyond_the_list_is_named(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    cv2.imwrite(str(labels / "a1.png"), np.full((24, 32), 9, np.uint8))
    with pytest.raises(DatasetError, match=r"a1\.png holds class 9.*2 entries"):
        FolderSamples(images, labels, class_count=2).mask(1)


def test_a_label_of_another_size_is_named(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    cv2.imwrite(str(labels / "a2.png"), np.zeros((5, 5), np.uint8))
    with pytest.raises(DatasetError, match=r"a2\.png is \(5, 5\)"):
        FolderSamples(images, labels, class_count=2).mask(2)


def test_a_missing_label_names_the_image(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    (labels / "a2.png").unlink()
    with pytest.raises(DatasetError, match=r"a2\.png: expected one label.*none"):
        FolderSamples(images, labels, class_count=2)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        FolderSamples(tmp_path / "nowhere", tmp_path, class_count=2)
