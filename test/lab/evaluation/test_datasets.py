"""Tiny trees in the data sets' own layouts, written as their archives unpack."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_benchmark import BENCHMARK, below, class_names, decode_labels, open_domain
from scipy.io import savemat

from semla_ros.errors import DatasetError
from semla_ros.lab.evaluation.datasets.layouts import Layout, SamplePaths
from semla_ros.lab.evaluation.datasets.sizes import SizeRule, stretch_to

HEIGHT, WIDTH = 20, 32
SEMLA20 = BENCHMARK.domains
VISTAS_COLOURS = [list(bytes.fromhex(colour)) for colour in BENCHMARK.encodings["mapillary"].colours.values()]


def write(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image = Image.fromarray(pixels, mode="P")
        image.putpalette(palette)
    image.save(path)
    return path


def write_image(path: Path, seed: int = 0) -> Path:
    return write(path, np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8))


def halves(left: int, right: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.full((HEIGHT, WIDTH), left, dtype)
    values[:, WIDTH // 2 :] = right
    return values


def acdc(root: Path) -> None:
    write_image(root / "acdc/rgb_anon/fog/val/GOPR0475/GOPR0475_frame_000247_rgb_anon.png")
    write(root / "acdc/gt/fog/val/GOPR0475/GOPR0475_frame_000247_gt_labelTrainIds.png", halves(0, 255))


def acdc_ids(root: Path) -> None:
    write_image(root / "acdc/rgb_anon/fog/val/GOPR0475/GOPR0475_frame_000247_rgb_anon.png")
    write(root / "acdc/gt/fog/val/GOPR0475/GOPR0475_frame_000247_gt_labelIds.png", halves(7, 4))


def muses(root: Path) -> None:
    write_image(root / "muses/frame_camera/val/rain/night/REC0006_frame_035538_frame_camera.png")
    write(root / "muses/gt_semantic/val/rain/night/REC0006_frame_035538_gt_labelTrainIds.png", halves(18, 255))


def muses_ids(root: Path) -> None:
    write_image(root / "muses/frame_camera/val/fog/day/REC0006_frame_035538_frame_camera.png")
    write(root / "muses/gt_semantic/val/fog/day/REC0006_frame_035538_gt_labelIds.png", halves(33, 18))


def cityscapes_train_ids(root: Path) -> None:
    cityscapes(root)  # its label ids stay beside them, as cityscapesScripts leaves them
    write(root / "cityscapes/gtFine/val/lindau/lindau_000000_000019_gtFine_labelTrainIds.png", halves(13, 255))


def cityscapes(root: Path) -> None:
    write_image(root / "cityscapes/leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png")
    write(root / "cityscapes/gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png", halves(26, 0))


def bdd(root: Path) -> None:
    write_image(root / "bdd100k/images/10k/val/7d06fefd-f7be05a6.jpg")
    write(root / "bdd100k/labels/sem_seg/masks/val/7d06fefd-f7be05a6.png", halves(13, 255))


def vistas_palette(root: Path) -> None:
    write_image(root / "mapillary_vistas/val/images/_1Gn_.jpg")
    palette = [channel for colour in [*VISTAS_COLOURS, [0, 0, 0]] for channel in colour]
    write(root / "mapillary_vistas/val/labels/_1Gn_.png", halves(55, 65), palette)


def vistas_archive_1_2(root: Path) -> None:
    write_image(root / "mapillary_vistas/validation/images/_1Gn_.jpg")
    write(root / "mapillary_vistas/validation/labels/_1Gn_.png", halves(55, 65))


def vistas_archive_16_bit(root: Path) -> None:
    write_image(root / "mapillary_vistas/validation/images/_1Gn_.jpg")
    write(root / "mapillary_vistas/validation/v1.2/labels/_1Gn_.png", halves(55 * 256 + 3, 65 * 256, np.uint16))


def vistas_rgb(root: Path) -> None:
    write_image(root / "mapillary_vistas/validation/images/_1Gn_.jpg")
    colours = np.array([*VISTAS_COLOURS, [0, 0, 0]], np.uint8)
    write(root / "mapillary_vistas/validation/labels/_1Gn_.png", colours[halves(55, 65)])


def ade(root: Path) -> None:
    write_image(root / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg")
    write(root / "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", halves(150, 0))


def ade_indices(root: Path) -> None:
    write_image(root / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg")
    write(root / "ADEChallengeData2016/annotations_detectron2/validation/ADE_val_00000001.png", halves(149, 255))


def idd_second_part(root: Path) -> None:
    write_image(root / "IDD_Segmentation/leftImg8bit/val/402/frame0029_leftImg8bit.jpg")
    write(root / "IDD_Segmentation/gtFine/val/402/frame0029_gtFine_labellevel3Ids.png", halves(8, 255))


def idd(root: Path) -> None:
    write_image(root / "IDD_Segmentation/leftImg8bit/val/119/903127_leftImg8bit.png")
    write(root / "IDD_Segmentation/gtFine/val/119/903127_gtFine_labellevel3Ids.png", halves(8, 255))


def pascal(root: Path) -> None:
    write_image(root / "pascal_ctx_d2/images/validation/2008_000002.jpg")
    write(root / "pascal_ctx_d2/annotations_ctx59/validation/2008_000002.png", halves(0, 255))


def pascal_mat(root: Path) -> None:
    base = root / "VOCdevkit/VOC2010"
    write_image(base / "JPEGImages/2008_000002.jpg")
    (base / "trainval").mkdir(parents=True)
    (base / "pascalcontext_val.txt").write_text("2008_000002\n")
    savemat(base / "trainval/2008_000002.mat", {"LabelMap": halves(2, 1, np.uint16)})


def nyu(root: Path) -> None:
    write_image(root / "nyudv2/rgb/000001.png")
    write(root / "nyudv2/masks/000001.png", halves(39, 255))
    (root / "nyudv2/test.txt").write_text("rgb/000001.png,masks/000001.png,depth/000001.png\n")


def nyu_esanet(root: Path) -> None:
    write_image(root / "nyudv2/test/rgb/0001.png")
    write(root / "nyudv2/test/labels_40/0001.png", halves(40, 0))
    (root / "nyudv2/test.txt").write_text("0001\n")  # the export's own list, of bare names


def nyu_numbers(root: Path) -> None:
    write_image(root / "nyudv2/test/rgb/0001.jpg")
    write(root / "nyudv2/test/label40/0001.png", halves(40, 0))


def coconut(root: Path) -> None:
    write_image(root / "coco/val2017/000000000139.jpg")
    ids = halves(5, 0, np.int64) + 300 * (halves(1, 0, np.int64))
    packed = np.stack([ids % 256, ids // 256, ids // 65536], axis=-1).astype(np.uint8)
    write(root / "coco/panoptic_val2017/000000000139.png", packed)
    segments = [{"id": 305, "category_id": 200}]
    annotation = {"annotations": [{"file_name": "000000000139.png", "image_id": 139, "segments_info": segments}]}
    (root / "coco/annotations").mkdir(parents=True)
    (root / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(annotation))


def coconut_objects365(root: Path) -> None:
    coconut(root)
    (root / "coco/val2017/000000000139.jpg").rename(root / "coco/val2017/objects365_v1_00091105.jpg")
    (root / "coco/panoptic_val2017/000000000139.png").rename(root / "coco/panoptic_val2017/objects365_v1_00091105.png")
    index = root / "coco/annotations/panoptic_val2017.json"
    content = json.loads(index.read_text())
    content["annotations"][0] |= {"file_name": "691105.png", "object365_file_name": "objects365_v1_00091105"}
    index.write_text(json.dumps(content))


def coconut_indices(root: Path) -> None:
    write_image(root / "coco/val2017/000000000139.jpg")
    write_image(root / "coco/val2017/000000000285.jpg")  # one of COCO's own that has no COCONut labels
    write(root / "coco/panoptic_semseg_val2017/000000000139.png", halves(132, 255))


# Tree, domain, and the name of the class that its left half holds; the right half is unlabelled.
TREES: list[tuple[Callable[[Path], None], str, str]] = [
    (acdc, "acdc-fog", "road"),
    (acdc_ids, "acdc-fog", "road"),
    (muses, "muses-rain-night", "bicycle"),
    (muses_ids, "muses-fog-day", "bicycle"),
    (cityscapes, "cs-normal", "car"),
    (cityscapes_train_ids, "cs-normal", "car"),
    (bdd, "bdd", "car"),
    (vistas_palette, "mv", "Car"),
    (vistas_archive_1_2, "mv", "Car"),
    (vistas_archive_16_bit, "mv", "Car"),
    (vistas_rgb, "mv", "Car"),
    (ade, "a150", "flag"),
    (ade_indices, "a150", "flag"),
    (idd, "idd", "auto rickshaw"),
    (idd_second_part, "idd", "auto rickshaw"),
    (pascal, "pc59", "aeroplane"),
    (pascal_mat, "pc59", "aeroplane"),
    (nyu, "nyu", "prop"),
    (nyu_esanet, "nyu", "prop"),
    (nyu_numbers, "nyu", "prop"),
    (coconut, "coconutL", "rug"),
    (coconut_objects365, "coconutL", "rug"),
    (coconut_indices, "coconutL", "rug"),
]


@pytest.mark.parametrize(("make", "name", "expected"), TREES, ids=[make.__name__ for make, _, _ in TREES])
def test_each_layout_is_read_with_its_own_label_map(
    tmp_path: Path, make: Callable[[Path], None], name: str, expected: str
) -> None:
    make(tmp_path)
    images = open_domain(name, tmp_path)
    assert len(images.paths) == 1
    sample = images.read(0, 0)
    assert sample.labels.shape == (HEIGHT, WIDTH)
    assert (sample.labels[:, : WIDTH // 2] == images.class_names.index(expected)).all()
    assert (sample.labels[:, WIDTH // 2 :] == 255).all()
    assert sample.image.dtype == np.uint8
    assert sample.image.shape[2] == 3


def test_every_layout_of_every_data_set_is_among_the_trees(tmp_path: Path) -> None:
    covered = set()
    for make, name, _ in TREES:
        root = tmp_path / make.__name__
        make(root)
        paths = open_domain(name, root).paths
        words = SEMLA20[name].words
        layouts = SEMLA20[name].layouts.items()
        covered |= {(name.split("-")[0], key) for key, item in layouts if _finds(item, root, words) == paths}
    wanted = {(name.split("-")[0], key) for name in SEMLA20 for key in SEMLA20[name].layouts}
    assert covered == wanted


def _finds(layout: Layout, root: Path, words: dict[str, str]) -> list[SamplePaths]:
    try:
        return layout.find(root, "val", words)[0]
    except DatasetError:
        return []


def test_the_benchmark_has_the_twenty_published_domains_over_ten_data_sets() -> None:
    assert len(SEMLA20) == 20
    assert {name.split("-")[0] for name in SEMLA20} == {
        "acdc", "muses", "cs", "bdd", "mv", "a150", "idd", "pc59", "nyu", "coconutL",
    }  # fmt: skip
    counts = {name: len(BENCHMARK.class_names(name)) for name in SEMLA20 if "-" not in name}
    assert counts == {"bdd": 19, "mv": 65, "a150": 150, "idd": 26, "pc59": 59, "nyu": 40, "coconutL": 133}


# Domain -> what its message must name, below the root: images and labels of every layout.
WANTED = {
    **{
        f"acdc-{weather}": (f"acdc/rgb_anon/{weather}/val/", f"acdc/gt/{weather}/val/", "labelTrainIds", "labelIds")
        for weather in ("rain", "fog", "snow", "night")
    },
    **{
        f"muses-{weather}-{time}": (
            f"muses/frame_camera/val/{weather}/{time}/",
            f"muses/gt_semantic/val/{weather}/{time}/",
            "labelTrainIds",
            "labelIds",
        )
        for weather in ("clear", "rain", "fog", "snow")
        for time in ("day", "night")
    },
    "cs-normal": ("cityscapes/leftImg8bit/val/", "cityscapes/gtFine/val/", "labelTrainIds", "labelIds"),
    "bdd": ("bdd100k/images/10k/val/", "bdd100k/labels/sem_seg/masks/val/"),
    "mv": (
        "mapillary_vistas/val/images/",
        "mapillary_vistas/val/labels/",
        "mapillary_vistas/validation/images/",
        "mapillary_vistas/validation/v1.2/labels/",
        "mapillary_vistas/validation/labels/",
    ),
    "a150": (
        "ADEChallengeData2016/images/validation/",
        "ADEChallengeData2016/annotations/validation/",
        "ADEChallengeData2016/annotations_detectron2/validation/",
    ),
    "idd": ("IDD_Segmentation/leftImg8bit/val/", "IDD_Segmentation/gtFine/val/", "labellevel3Ids"),
    "pc59": (
        "pascal_ctx_d2/images/validation/",
        "pascal_ctx_d2/annotations_ctx59/validation/",
        "VOCdevkit/VOC2010/pascalcontext_val.txt",
        "VOCdevkit/VOC2010/JPEGImages/",
        "VOCdevkit/VOC2010/trainval/",
    ),
    "nyu": ("nyudv2/test.txt", "nyudv2/test/rgb/", "nyudv2/test/labels_40/", "nyudv2/test/label40/"),
    "coconutL": (
        "coco/val2017/",
        "coco/panoptic_semseg_val2017/",
        "coco/annotations/panoptic_val2017.json",
        "coco/panoptic_val2017",
    ),
}


@pytest.mark.parametrize("name", SEMLA20)
def test_a_missing_domain_says_which_folders_it_wants(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError) as caught:
        open_domain(name, tmp_path)
    message = str(caught.value)
    assert f"'{name}'" in message
    assert str(tmp_path) in message
    assert SEMLA20[name].url in message
    assert [part for part in WANTED[name] if part not in message] == []


def test_all_missing_domains_are_reported_at_once(tmp_path: Path) -> None:
    acdc(tmp_path)
    with pytest.raises(DatasetError, match="2 domains") as caught:
        below(tmp_path).check(["acdc-fog", "bdd", "nyu"])
    assert "bdd100k/images/10k/val" in str(caught.value)
    assert "nyudv2/test.txt" in str(caught.value)


def test_an_image_without_labels_is_named(tmp_path: Path) -> None:
    bdd(tmp_path)
    write_image(tmp_path / "bdd100k/images/10k/val/second.jpg")
    with pytest.raises(DatasetError, match=r"second\.jpg is there, .*second\.png is not"):
        open_domain("bdd", tmp_path)


def test_an_image_that_only_a_list_names_is_missed_before_anything_is_read(tmp_path: Path) -> None:
    coconut(tmp_path)
    (tmp_path / "coco/val2017/000000000139.jpg").unlink()
    with pytest.raises(DatasetError, match=r"000000000139\.png is there, .*000000000139\.jpg is not"):
        open_domain("coconutL", tmp_path)


def test_a_list_that_leads_nowhere_says_so(tmp_path: Path) -> None:
    nyu(tmp_path)
    (tmp_path / "nyudv2/test.txt").write_text("rgb/7.png,masks/7.png,depth/7.png\n")
    with pytest.raises(DatasetError, match=r"neither .*7\.png nor .*7\.png is there"):
        open_domain("nyu", tmp_path)


def test_a_list_of_another_kind_is_named_where_no_other_layout_fits(tmp_path: Path) -> None:
    (tmp_path / "nyudv2").mkdir()
    (tmp_path / "nyudv2/test.txt").write_text("0001\n")
    with pytest.raises(DatasetError, match=r"labels_40.*test\.txt: expected lines 'image,labels'"):
        open_domain("nyu", tmp_path)


def test_a_label_of_another_encoding_is_refused(tmp_path: Path) -> None:
    bdd(tmp_path)
    write(tmp_path / "bdd100k/labels/sem_seg/masks/val/7d06fefd-f7be05a6.png", halves(33, 0))
    with pytest.raises(DatasetError, match="value 33"):
        open_domain("bdd", tmp_path).read(0, 0)


def test_labels_of_another_size_than_their_image_are_refused(tmp_path: Path) -> None:
    bdd(tmp_path)
    write(tmp_path / "bdd100k/labels/sem_seg/masks/val/7d06fefd-f7be05a6.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DatasetError, match="same height and width"):
        open_domain("bdd", tmp_path).read(0, 0)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    bdd(tmp_path)
    (tmp_path / "bdd100k/images/10k/val/7d06fefd-f7be05a6.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"image .*7d06fefd-f7be05a6\.jpg: not an image file"):
        open_domain("bdd", tmp_path).read(0, 0)


def test_images_are_upright_by_their_exif_data(tmp_path: Path) -> None:
    bdd(tmp_path)
    path = tmp_path / "bdd100k/images/10k/val/7d06fefd-f7be05a6.jpg"
    with Image.open(path) as picture:
        upright = np.asarray(picture.convert("RGB"))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(path, exif=exif, quality=95)
    scene = open_domain("bdd", tmp_path).read(0, 0).scene
    assert scene.shape == upright.shape
    assert np.abs(scene.astype(int) - upright).mean() < 12  # noise, through a JPEG; turned it would be 80


def test_a_damaged_mat_file_is_a_data_set_error(tmp_path: Path) -> None:
    broken = tmp_path / "x.mat"
    broken.write_bytes(b"\x00" * 200)
    with pytest.raises(DatasetError, match="cannot be read"):
        decode_labels("pascal context mat", broken)


def test_an_unknown_domain_says_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"did you mean 'acdc-snow'\?"):
        open_domain("acdc-dusk", tmp_path)


def test_the_shorter_edge_is_brought_to_its_length_unless_the_longer_passes_its_limit() -> None:
    assert SizeRule(shortest=640, longest=2560).size(1080, 1920) == (640, 1138)
    assert SizeRule(shortest=640, longest=800).size(1000, 4000) == (200, 800)
    assert SizeRule(shortest=0, longest=700).size(900, 1300) == (900, 1300)
    assert SizeRule(shortest=512, longest=1024, fixed=(512, 1024)).size(1024, 2048) == (512, 1024)


def test_a_resized_image_keeps_its_colours_and_an_unresized_one_its_pixels() -> None:
    image = np.full((40, 60, 3), (10, 120, 250), np.uint8)
    assert (SizeRule(shortest=20, longest=100).apply(image) == image[:20, :30]).all()
    untouched = SizeRule(shortest=0).apply(image)
    assert untouched.tobytes() == image.tobytes()


def test_a_stretched_mask_holds_only_the_classes_it_had() -> None:
    mask = np.random.default_rng(0).choice(np.array([3, 17], np.uint8), (10, 14))
    stretched = stretch_to(mask, 33, 41)
    assert stretched.shape == (33, 41)
    assert set(np.unique(stretched)) == {3, 17}


def test_images_are_drawn_by_seed_without_repetition(tmp_path: Path) -> None:
    for index in range(12):
        write_image(tmp_path / f"bdd100k/images/10k/val/{index:02}.jpg", index)
        write(tmp_path / f"bdd100k/labels/sem_seg/masks/val/{index:02}.png", halves(0, 1))
    images = open_domain("bdd", tmp_path)
    drawn = images.indices(3, 5)
    assert drawn == images.indices(3, 5)
    assert len(set(drawn)) == 5
    assert images.indices(4, 5) != drawn
    assert images.indices(3, 0) == list(range(12))


def test_no_vocabulary_repeats_a_name() -> None:
    for vocabulary in BENCHMARK.classes:
        names = class_names(vocabulary)
        assert len(set(names)) == len(names), vocabulary
        assert all(name == name.strip() and name for name in names), vocabulary
