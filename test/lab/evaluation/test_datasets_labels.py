"""The label maps against what the data sets say themselves: each number with the name that its owner gives it.

The pairs below were read from the files named above them, not from `semla20.yaml`.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_benchmark import class_names, decode_labels
from scipy.io import savemat

from semla_ros.errors import DatasetError


def pairs(text: str) -> dict[int, str]:
    """'7 road, 8 sidewalk' as {7: 'road', 8: 'sidewalk'}."""
    items = (item.split(" ", 1) for item in " ".join(text.split()).split(", "))
    return {int(number): name for number, name in items}


# cityscapesScripts, helpers/labels.py: id and name of the labels that have a train id, in the order of the train ids.
CITYSCAPES = """
    7 road, 8 sidewalk, 11 building, 12 wall, 13 fence, 17 pole, 19 traffic light, 20 traffic sign, 21 vegetation,
    22 terrain, 23 sky, 24 person, 25 rider, 26 car, 27 truck, 28 bus, 31 train, 32 motorcycle, 33 bicycle
"""

# AutoNUE public-code, helpers/anue_labels.py: level3Id, and the one of its labels that the published evaluation names.
IDD = """
    0 road, 1 parking, 2 sidewalk, 3 rail track, 4 animal, 5 rider, 6 motorcycle, 7 bicycle, 8 autorickshaw, 9 car,
    10 truck, 11 bus, 12 caravan, 13 curb, 14 wall, 15 fence, 16 guard rail, 17 billboard, 18 traffic sign, 19
    traffic light, 20 pole, 21 obs-str-bar-fallback, 22 building, 23 bridge, 24 vegetation, 25 sky
"""

# classMapping40.mat of ankurhanda/nyuv2-meta-data, `className`; the same in data/nyud/classes.txt of
# shelhamer/fcn.berkeleyvision.org.
NYU = """
    1 wall, 2 floor, 3 cabinet, 4 bed, 5 chair, 6 sofa, 7 table, 8 door, 9 window, 10 bookshelf, 11 picture, 12
    counter, 13 blinds, 14 desk, 15 shelves, 16 curtain, 17 dresser, 18 pillow, 19 mirror, 20 floor mat, 21 clothes,
    22 ceiling, 23 books, 24 refridgerator, 25 television, 26 paper, 27 towel, 28 shower curtain, 29 box, 30
    whiteboard, 31 person, 32 night stand, 33 toilet, 34 sink, 35 lamp, 36 bathtub, 37 bag, 38 otherstructure, 39
    otherfurniture, 40 otherprop
"""

# PASCAL-Context's labels.txt, as data/pascal-context/classes-400.txt of shelhamer/fcn.berkeleyvision.org has it.
PASCAL_CONTEXT = """
    2 aeroplane, 9 bag, 18 bed, 19 bedclothes, 22 bench, 23 bicycle, 25 bird, 31 boat, 33 book, 34 bottle, 44
    building, 45 bus, 46 cabinet, 59 car, 65 cat, 68 ceiling, 72 chair, 80 cloth, 85 computer, 98 cow, 104 cup, 105
    curtain, 113 dog, 115 door, 144 fence, 158 floor, 159 flower, 162 food, 187 grass, 189 ground, 207 horse, 220
    keyboard, 232 light, 258 motorbike, 259 mountain, 260 mouse, 284 person, 295 plate, 296 platform, 308
    pottedplant, 324 road, 326 rock, 347 sheep, 349 shelves, 354 sidewalk, 355 sign, 360 sky, 366 snow, 368 sofa,
    397 table, 415 track, 416 train, 420 tree, 424 truck, 427 tvmonitor, 440 wall, 445 water, 454 window, 458 wood
"""

# CSAILVision/sceneparsing, objectInfo150.txt: index and first name.
ADE20K = """
    1 wall, 2 building, 3 sky, 4 floor, 5 tree, 6 ceiling, 7 road, 8 bed, 9 windowpane, 10 grass, 11 cabinet, 12
    sidewalk, 13 person, 14 earth, 15 door, 16 table, 17 mountain, 18 plant, 19 curtain, 20 chair, 21 car, 22 water,
    23 painting, 24 sofa, 25 shelf, 26 house, 27 sea, 28 mirror, 29 rug, 30 field, 31 armchair, 32 seat, 33 fence,
    34 desk, 35 rock, 36 wardrobe, 37 lamp, 38 bathtub, 39 railing, 40 cushion, 41 base, 42 box, 43 column, 44
    signboard, 45 chest of drawers, 46 counter, 47 sand, 48 sink, 49 skyscraper, 50 fireplace, 51 refrigerator, 52
    grandstand, 53 path, 54 stairs, 55 runway, 56 case, 57 pool table, 58 pillow, 59 screen door, 60 stairway, 61
    river, 62 bridge, 63 bookcase, 64 blind, 65 coffee table, 66 toilet, 67 flower, 68 book, 69 hill, 70 bench, 71
    countertop, 72 stove, 73 palm, 74 kitchen island, 75 computer, 76 swivel chair, 77 boat, 78 bar, 79 arcade
    machine, 80 hovel, 81 bus, 82 towel, 83 light, 84 truck, 85 tower, 86 chandelier, 87 awning, 88 streetlight, 89
    booth, 90 television, 91 airplane, 92 dirt track, 93 apparel, 94 pole, 95 land, 96 bannister, 97 escalator, 98
    ottoman, 99 bottle, 100 buffet, 101 poster, 102 stage, 103 van, 104 ship, 105 fountain, 106 conveyer belt, 107
    canopy, 108 washer, 109 plaything, 110 swimming pool, 111 stool, 112 barrel, 113 basket, 114 waterfall, 115
    tent, 116 bag, 117 minibike, 118 cradle, 119 oven, 120 ball, 121 food, 122 step, 123 tank, 124 trade name, 125
    microwave, 126 pot, 127 animal, 128 bicycle, 129 lake, 130 dishwasher, 131 screen, 132 blanket, 133 sculpture,
    134 hood, 135 sconce, 136 vase, 137 traffic light, 138 tray, 139 ashcan, 140 fan, 141 pier, 142 crt screen, 143
    plate, 144 monitor, 145 bulletin board, 146 shower, 147 radiator, 148 glass, 149 clock, 150 flag
"""

# cocodataset/panopticapi, panoptic_coco_categories.json.
COCO = """
    1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light, 11 fire
    hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, 22
    elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee,
    35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard,
    43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
    54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch, 64
    potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard, 77 cell
    phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, 88
    teddy bear, 89 hair drier, 90 toothbrush, 92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109
    curtain, 112 door-stuff, 118 floor-wood, 119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133
    mirror-stuff, 138 net, 141 pillow, 144 platform, 145 playingfield, 147 railroad, 148 river, 149 road, 151 roof,
    154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel, 171 wall-brick, 175 wall-stone, 176
    wall-tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other, 184 tree-merged, 185
    fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188 cabinet-merged, 189 table-merged, 190
    floor-other-merged, 191 pavement-merged, 192 mountain-merged, 193 grass-merged, 194 dirt-merged, 195
    paper-merged, 196 food-other-merged, 197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200
    rug-merged
"""

# Vistas 1.2: names and RGB colours in the order of the index, as Mask2Former's register_mapillary_vistas.py and
# datumaro's label map of v1.2 agree on them. The last one is unlabelled.
VISTAS = """
    a52a2a Bird, 00c000 Ground Animal, c4c4c4 Curb, be9999 Fence, b4a5b4 Guard Rail, 5a7896 Barrier, 66669c Wall,
    8040ff Bike Lane, 8c8cc8 Crosswalk - Plain, aaaaaa Curb Cut, faaaa0 Parking, 606060 Pedestrian Area, e6968c Rail
    Track, 804080 Road, 6e6e6e Service Lane, f423e8 Sidewalk, 966464 Bridge, 464646 Building, 96785a Tunnel, dc143c
    Person, ff0000 Bicyclist, ff0064 Motorcyclist, ff00c8 Other Rider, c88080 Lane Marking - Crosswalk, ffffff Lane
    Marking - General, 40aa40 Mountain, e6a032 Sand, 4682b4 Sky, beffff Snow, 98fb98 Terrain, 6b8e23 Vegetation,
    00aa1e Water, ffff80 Banner, fa001e Bench, 648cb4 Bike Rack, dcdcdc Billboard, dc8080 Catch Basin, de2828 CCTV
    Camera, 64aa1e Fire Hydrant, 282828 Junction Box, 212121 Mailbox, 6480a0 Manhole, 8e0000 Phone Booth, 466496
    Pothole, d2aa64 Street Light, 999999 Pole, 808080 Traffic Sign Frame, 000050 Utility Pole, faaa1e Traffic Light,
    c0c0c0 Traffic Sign (Back), dcdc00 Traffic Sign (Front), 8c8c14 Trash Can, 770b20 Bicycle, 9600ff Boat, 003c64
    Bus, 00008e Car, 00005a Caravan, 0000e6 Motorcycle, 005064 On Rails, 804040 Other Vehicle, 00006e Trailer,
    000046 Truck, 0000c0 Wheeled Slow, 202020 Car Mount, 780a0a Ego Vehicle, 000000 Unlabeled
"""

# Names that the published evaluation gives the text encoder in place of the data set's own.
RENAMED = {
    "idd-26": {"autorickshaw": "auto rickshaw", "obs-str-bar-fallback": "bar"},
    "nyu-40": {
        "refridgerator": "refrigerator",
        "otherstructure": "structure",
        "otherfurniture": "furniture",
        "otherprop": "prop",
    },
    "pascal-context-59": {"table": "diningtable"},
    "ade20k-150": {"television": "television receiver"},
    "coco-133": {
        "orange": "orange fruit",
        "remote": "tv remote",
        "scissors": "scissor",
        "light": "lamp",
        "net": "tennis net",
        "floor-wood": "wood floor",
        "wall-brick": "brick wall",
        "wall-stone": "stone wall",
        "wall-tile": "tile wall",
        "wall-wood": "wood wall",
        "window-blind": "window blind",
    },
}


def published(names: list[str], vocabulary: str) -> list[str]:
    """The class names of `vocabulary` that stand for the data set's own names."""
    plain = [re.sub("-(other|merged|stuff)", "", name) for name in names]
    return [RENAMED.get(vocabulary, {}).get(name, name) for name in plain]


def strip(path: Path, values: list[int], dtype: type = np.uint8) -> Path:
    """An image of one row that holds each of `values` once."""
    Image.fromarray(np.array([values], dtype)).save(path)
    return path


def named(decoded: np.ndarray, vocabulary: str) -> list[str]:
    names = dict(enumerate(class_names(vocabulary))) | {255: "unlabelled"}
    return [names[int(value)] for value in decoded.ravel()]


@pytest.mark.parametrize(
    ("encoding", "vocabulary", "text"),
    [
        ("cityscapes ids", "cityscapes-19", CITYSCAPES),
        ("idd level 3", "idd-26", IDD),
        ("nyu numbers", "nyu-40", NYU),
        ("ade20k numbers", "ade20k-150", ADE20K),
    ],
)
def test_each_number_becomes_the_class_that_the_data_set_gives_it(
    tmp_path: Path, encoding: str, vocabulary: str, text: str
) -> None:
    numbers = pairs(text)
    decoded = decode_labels(encoding, strip(tmp_path / "labels.png", list(numbers)))
    assert named(decoded, vocabulary) == published(list(numbers.values()), vocabulary)


def test_train_ids_follow_the_order_of_cityscapes_own_table(tmp_path: Path) -> None:
    decoded = decode_labels("cityscapes train ids", strip(tmp_path / "labels.png", [*range(19), 255]))
    assert named(decoded, "cityscapes-19") == [*pairs(CITYSCAPES).values(), "unlabelled"]


def test_cityscapes_ids_without_a_train_id_are_not_evaluated(tmp_path: Path) -> None:
    others = [number for number in range(34) if number not in pairs(CITYSCAPES)]
    assert len(others) == 15
    assert (decode_labels("cityscapes ids", strip(tmp_path / "labels.png", others)) == 255).all()


def test_train_ids_in_a_file_of_cityscapes_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="value 255 is none of the Cityscapes label ids"):
        decode_labels("cityscapes ids", strip(tmp_path / "labels.png", [0, 8, 13, 255]))


@pytest.mark.parametrize(("encoding", "count"), [("ade20k", 150), ("nyu", 40)])
def test_files_numbered_from_nought_and_from_one_give_the_same_classes(
    tmp_path: Path, encoding: str, count: int
) -> None:
    from_one = decode_labels(f"{encoding} numbers", strip(tmp_path / "one.png", [*range(1, count + 1), 0]))
    from_nought = decode_labels(f"{encoding} indices", strip(tmp_path / "nought.png", [*range(count), 255]))
    assert from_one.tolist() == from_nought.tolist()


def test_the_59_of_pascal_context_are_picked_from_its_459_labels(tmp_path: Path) -> None:
    numbers = pairs(PASCAL_CONTEXT)
    assert len(numbers) == 59
    everything = np.arange(460, dtype=np.uint16).reshape(1, -1)
    savemat(tmp_path / "labels.mat", {"LabelMap": everything})
    names = named(decode_labels("pascal context mat", tmp_path / "labels.mat"), "pascal-context-59")
    picked = {number: name for number, name in enumerate(names) if name != "unlabelled"}
    assert picked == dict(zip(numbers, published(list(numbers.values()), "pascal-context-59"), strict=True))


def test_the_exported_indices_of_pascal_context_follow_the_order_of_its_numbers(tmp_path: Path) -> None:
    decoded = decode_labels("pascal context indices", strip(tmp_path / "labels.png", [*range(59), 255]))
    in_order = published([name for _, name in sorted(pairs(PASCAL_CONTEXT).items())], "pascal-context-59")
    assert named(decoded, "pascal-context-59") == [*in_order, "unlabelled"]


def test_each_coco_category_becomes_its_class_and_exported_indices_follow_the_same_order(tmp_path: Path) -> None:
    categories = pairs(COCO)
    assert len(categories) == 133
    segments = {1000 + 257 * index: category for index, category in enumerate(categories)}
    ids = np.array([[*segments, 0]])
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(
        tmp_path / "panoptic.png"
    )
    names = named(decode_labels("coco panoptic", tmp_path / "panoptic.png", segments), "coco-133")
    assert names == [*published(list(categories.values()), "coco-133"), "unlabelled"]
    exported = decode_labels("coco indices", strip(tmp_path / "indices.png", [*range(133), 255]))
    assert named(exported, "coco-133") == names


def vistas() -> tuple[list[str], np.ndarray]:
    """Names in the order of the index, and colours (66, 3); the last is unlabelled."""
    items = [item.split(" ", 1) for item in " ".join(VISTAS.split()).split(", ")]
    return [name for _, name in items[:-1]], np.array([list(bytes.fromhex(colour)) for colour, _ in items], np.uint8)


def test_vistas_indices_instances_and_colours_become_the_same_classes(tmp_path: Path) -> None:
    names, colours = vistas()
    assert len(colours) == 66
    Image.fromarray(colours[None]).save(tmp_path / "colours.png")
    files = [
        strip(tmp_path / "index.png", list(range(66))),
        strip(tmp_path / "first.png", [index * 256 for index in range(66)], np.uint16),
        strip(tmp_path / "last.png", [index * 256 + 255 for index in range(66)], np.uint16),
        tmp_path / "colours.png",
    ]
    for file in files:
        assert named(decode_labels("mapillary", file), "mapillary-65") == [*names, "unlabelled"], file.name


def test_labels_of_vistas_2_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"value 123 is none of the Vistas 1\.2"):
        decode_labels("mapillary", strip(tmp_path / "labels.png", [21, 123]))


@pytest.mark.parametrize(
    ("encoding", "value"),
    [
        ("cityscapes train ids", 19),
        ("cityscapes ids", 34),
        ("ade20k numbers", 151),
        ("ade20k indices", 150),
        ("idd level 3", 26),
        ("pascal context indices", 59),
        ("nyu indices", 40),
        ("nyu numbers", 41),
        ("coco indices", 133),
        ("mapillary", 66),
    ],
)
def test_the_first_value_past_the_classes_is_refused(tmp_path: Path, encoding: str, value: int) -> None:
    with pytest.raises(DatasetError, match=f"value {value} is none of"):
        decode_labels(encoding, strip(tmp_path / "labels.png", [1, value]))
