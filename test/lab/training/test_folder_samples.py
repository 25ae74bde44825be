"""Folders of images and labels, and what is said when they do not fit."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from semla_ros.errors import ConfigError, DatasetError
from semla_ros.lab.evaluation.datasets.benchmark import load_benchmark
from semla_ros.lab.training.batches import AugmentConfig, draw_batch
from semla_ros.lab.training.samples import ConcatenatedSamples, FolderSamples

CLASSES = ("road", "sky", "car")


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
    samples = FolderSamples(*folders, CLASSES[:2])
    assert len(samples) == 3
    for index in range(3):
        assert np.array_equal(samples.mask(index), samples.image(index)[..., 0] // 128)


def test_images_are_upright_and_labels_of_a_palette_are_its_indices(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    samples = FolderSamples(images, labels, CLASSES[:2])
    upright, mask = samples.image(1), samples.mask(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(images / "a1.png", exif=exif)
    palette = Image.fromarray(mask, mode="P")
    palette.putpalette([9, 8, 7, 200, 100, 50])
    palette.save(labels / "a1.png")
    assert np.array_equal(samples.image(1), upright)
    assert np.array_equal(samples.mask(1), mask)


def test_a_file_that_is_cut_off_is_named(folders: tuple[Path, Path]) -> None:
    samples = FolderSamples(*folders, CLASSES[:2])
    for folder, read in zip(folders, (samples.image, samples.mask), strict=True):
        path = folder / "a1.png"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DatasetError, match=r"a1\.png: cut off"):
            read(1)


def test_a_batch_keeps_image_and_mask_together(folders: tuple[Path, Path]) -> None:
    samples = ConcatenatedSamples([FolderSamples(*folders, CLASSES[:2])] * 2)
    mean, std = torch.zeros(3), torch.ones(3)
    augment = AugmentConfig(min_crop=1.0, brightness=0.0)
    generator = torch.Generator().manual_seed(3)
    images, masks = draw_batch(samples, 6, (24, 32), augment, generator, mean, std)
    assert images.shape == (6, 3, 24, 32)
    assert torch.equal((images[:, 0] // 128).long(), masks)
    again, _ = draw_batch(samples, 6, (24, 32), augment, torch.Generator().manual_seed(3), mean, std)
    assert torch.equal(images, again)


def test_square_crops_have_the_asked_size(folders: tuple[Path, Path]) -> None:
    samples = FolderSamples(*folders, CLASSES[:2])
    augment = AugmentConfig(crop_size=16, brightness=0.0, flip=False)
    images, _ = draw_batch(
        samples, 2, (16, 16), augment, torch.Generator().manual_seed(0), torch.zeros(3), torch.ones(3), indices=[1, 1]
    )
    source = torch.from_numpy(samples.image(1)).permute(2, 0, 1).float()
    windows = source.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 16, 16)
    assert all(bool((windows == image).flatten(1).all(1).any()) for image in images)


@pytest.mark.parametrize("size", [(12, 16), (16, 16), (8, 24)])
@pytest.mark.parametrize(("height", "width"), [(24, 32), (40, 20), (13, 90)])
def test_crops_have_the_shape_that_the_model_takes(
    tmp_path: Path, size: tuple[int, int], height: int, width: int
) -> None:
    for folder, picture in (("images", np.mgrid[0:height, 0:width].astype(np.uint8)), ("labels", None)):
        (tmp_path / folder).mkdir()
        values = np.zeros((height, width)) if picture is None else np.dstack([picture[0], picture[1], picture[0]])
        cv2.imwrite(str(tmp_path / folder / "0.png"), values.astype(np.uint8))
    samples = FolderSamples(tmp_path / "images", tmp_path / "labels", CLASSES[:1])
    augment = AugmentConfig(crop_size=12, brightness=0.0, flip=False)
    generator = torch.Generator().manual_seed(1)
    images, _ = draw_batch(samples, 4, size, augment, generator, torch.zeros(3), torch.ones(3))
    # A pixel's colour says where it lay, so the step from one to the next says how much a direction was stretched.
    steps = [float(images[:, 0].diff(dim=1).mean()), float(images[:, 1].diff(dim=2).mean())]
    assert steps[0] == pytest.approx(steps[1], rel=0.12)


@pytest.mark.parametrize("change", ["colour", "saturation", "contrast", "gamma"])
def test_light_changes_the_image_and_not_the_mask(folders: tuple[Path, Path], change: str) -> None:
    samples = FolderSamples(*folders, CLASSES[:2])
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
    elif change == "saturation":  # every pixel's grey stays, its distance from it has one gain
        inside = ((after > 0) & (after < 255)).all(1)
        grey = [picture.mean(1, keepdim=True) for picture in (before, after)]
        assert torch.allclose(grey[0].squeeze(1)[inside], grey[1].squeeze(1)[inside], atol=1e-3)
        apart = [(picture - mean).movedim(1, -1)[inside] for picture, mean in zip((before, after), grey, strict=True)]
        gain = float((apart[0] * apart[1]).sum() / (apart[0] ** 2).sum())
        assert 0.7 <= gain <= 1.3
        assert torch.allclose(apart[1], gain * apart[0], atol=1e-2)
    else:  # one curve for all pixels, which keeps their order
        order = before.flatten().argsort(stable=True)
        assert bool((after.flatten()[order].diff() >= -1e-3).all())


def test_a_class_beyond_the_list_is_named(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    cv2.imwrite(str(labels / "a1.png"), np.full((24, 32), 9, np.uint8))
    with pytest.raises(DatasetError, match=r"a1\.png: value 9 is none of the values 0 to 1 of the class list"):
        FolderSamples(images, labels, CLASSES[:2]).mask(1)


def test_a_label_of_another_size_is_named(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    cv2.imwrite(str(labels / "a2.png"), np.zeros((5, 5), np.uint8))
    with pytest.raises(DatasetError, match=r"a2\.png is \(5, 5\), its image .*a2\.png is \(32, 24\)"):
        FolderSamples(images, labels, CLASSES[:2]).mask(2)


def test_a_missing_label_names_the_image(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    (labels / "a2.png").unlink()
    with pytest.raises(DatasetError, match=r"a2\.png: expected one label.*none"):
        FolderSamples(images, labels, CLASSES[:2])


@pytest.mark.parametrize(
    ("image_end", "label_end"),
    [
        ("_leftImg8bit.png", "_gtFine_labelTrainIds.png"),
        ("_rgb_anon.png", "_gt_labelTrainIds.png"),
        ("_image.jpg", "_label.png"),
        (".png", ".png"),
        (".jpg", "_mask.png"),
    ],
)
def test_drives_with_the_same_file_names_keep_their_own_labels_in_any_public_naming(
    tmp_path: Path, image_end: str, label_end: str
) -> None:
    for value, drive in enumerate(("b", "a/city", "a")):
        for folder, end, shape in (("images", image_end, (4, 6, 3)), ("labels", label_end, (4, 6))):
            path = tmp_path / folder / drive / f"000000{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full(shape, value if folder == "labels" else 100 * value, np.uint8))
            if folder == "labels" and label_end.endswith("labelTrainIds.png"):  # what is not for training stays aside
                cv2.imwrite(str(path.with_name("000000_gtFine_color.png")), np.zeros((4, 6, 3), np.uint8))
    samples = FolderSamples(tmp_path / "images", tmp_path / "labels", CLASSES[:3])
    assert [int(samples.mask(index)[0, 0]) for index in range(3)] == [
        round(float(samples.image(index).mean()) / 100) for index in range(3)
    ]


def test_another_drives_label_of_the_same_name_is_none(tmp_path: Path) -> None:
    for path in (tmp_path / "images/a/0.png", tmp_path / "images/b/0.png", tmp_path / "labels/b/0.png"):
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.zeros((4, 6), np.uint8))
    with pytest.raises(DatasetError, match=r"a/0\.png: expected one label named a/0\.png or a/0_\*\.png, got none"):
        FolderSamples(tmp_path / "images", tmp_path / "labels", CLASSES[:2])


def test_labels_in_one_folder_belong_to_the_images_of_their_names_in_any(tmp_path: Path) -> None:
    for value, (drive, name) in enumerate((("a", "000"), ("b", "001"), ("b/c", "002"))):
        for path, shape in ((tmp_path / f"images/{drive}/{name}.jpg", (4, 6, 3)), (tmp_path / f"l/{name}.png", (4, 6))):
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full(shape, value if path.suffix == ".png" else 100 * value, np.uint8))
    samples = FolderSamples(tmp_path / "images", tmp_path / "l", CLASSES)
    assert [int(samples.mask(index)[0, 0]) for index in range(3)] == [0, 1, 2]
    cv2.imwrite(str(tmp_path / "images/a/001.jpg"), np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"001\.png would be that of .*a/001\.jpg and of .*b/001\.jpg"):
        FolderSamples(tmp_path / "images", tmp_path / "l", CLASSES)


def test_the_label_of_another_frame_is_none_even_where_its_name_begins_alike(tmp_path: Path) -> None:
    for path in (tmp_path / "images/seq_1.png", tmp_path / "labels/seq_1_000019.png", tmp_path / "labels/seq_10.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((4, 6), np.uint8))
    with pytest.raises(DatasetError, match=r"seq_1\.png: expected one label named seq_1\.png .*got none"):
        FolderSamples(tmp_path / "images", tmp_path / "labels", CLASSES)


def test_an_image_is_never_its_own_label(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DatasetError, match=r"a0\.png would be its own label: .* different folders"):
        FolderSamples(folders[0], folders[0], CLASSES)


def test_two_images_of_one_label_and_two_labels_of_one_image_are_named(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    cv2.imwrite(str(images / "a1.bmp"), np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"a1\.png would be that of .*a1\.bmp and of .*a1\.png"):
        FolderSamples(images, labels, CLASSES[:2])
    (images / "a1.bmp").unlink()
    cv2.imwrite(str(labels / "a0_other.png"), np.zeros((24, 32), np.uint8))
    with pytest.raises(DatasetError, match=r"a0\.png: expected one label.*a0_labelIds\.png, a0_other\.png"):
        FolderSamples(images, labels, CLASSES[:2])


@pytest.mark.parametrize("kind", ["8 bit", "16 bit", "palette", "1 bit", "tiff"])
def test_training_and_evaluation_read_the_same_labels(tmp_path: Path, kind: str) -> None:
    values = (np.arange(8 * 12).reshape(8, 12) % 2).astype(np.uint8)
    picture = Image.fromarray(values.astype(np.uint16) if kind == "16 bit" else values)
    if kind == "palette":
        picture.putpalette([200, 10, 30, 7, 8, 9])
    if kind == "1 bit":
        picture = Image.fromarray(values.astype(bool))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    picture.save(tmp_path / "labels" / f"0.{'tif' if kind == 'tiff' else 'png'}")
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "images" / "0.jpg")
    (tmp_path / "own.yaml").write_text("""
classes: {own: [road, sky]}
encodings: {own: {classes: own}}
domains: {dusk: {layouts: {files: {images: "images/{name}.*", labels: "labels/{name}.*", encoding: own}}}}
""")
    trained = FolderSamples(tmp_path / "images", tmp_path / "labels", CLASSES[:2]).mask(0)
    assert np.array_equal(trained, values)
    assert np.array_equal(load_benchmark(str(tmp_path / "own.yaml"), tmp_path).open("dusk").read(0, 0).labels, values)


def test_a_label_map_gives_values_their_classes(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    values = np.array([0, 7, 11, 200, 255], np.uint8)[np.arange(24 * 32).reshape(24, 32) % 5]
    for path in labels.iterdir():
        cv2.imwrite(str(path), values)
    names = {7: "Sky", 11: "road ", 200: "void", 0: "hood"}
    mask = FolderSamples(images, labels, ["road", "sky"], names).mask(0)
    expected = np.full(256, 255, np.uint8)
    expected[[7, 11]] = 1, 0
    assert np.array_equal(mask, expected[values])
    del names[0]
    with pytest.raises(DatasetError, match=r"value 0 is none of the values of the label map; name it there, as 'void'"):
        FolderSamples(images, labels, ["road", "sky"], names).mask(0)
    with pytest.raises(ConfigError, match="none of its names"):
        FolderSamples(images, labels, ["car"], names)


def test_palette_labels_are_read_as_indices(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    values = (np.arange(24 * 32).reshape(24, 32) % 2).astype(np.uint8)
    picture = Image.fromarray(values, mode="P")
    picture.putpalette([200, 10, 30, 7, 8, 9])
    picture.save(labels / "a1.png")
    assert np.array_equal(FolderSamples(images, labels, CLASSES[:2]).mask(1), values)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        FolderSamples(tmp_path / "nowhere", tmp_path, CLASSES[:2])
