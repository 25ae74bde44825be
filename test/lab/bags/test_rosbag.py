"""Bags: what is written is read back, in every storage; what is damaged is read as far as it goes."""

import resource
import shutil
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from semla_ros.errors import BagError
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import BagWriter, Status

STEP_NS = 100_000_000
START_NS = 1_700_000_000_000_000_000
FORMATS = [
    ("mcap", "none"),
    ("mcap", "chunk"),
    ("mcap", "message"),
    ("mcap", "file"),
    ("sqlite3", "none"),
    ("sqlite3", "message"),
    ("sqlite3", "file"),
]


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def write_bag(path: Path, frames: int = 12, storage: str = "mcap", compression: str = "none", size: int = 48) -> Path:
    with BagWriter(path, storage=storage, compression=compression) as bag:
        bag.string("/labels", "{}", START_NS)
        for index in range(frames):
            stamp = START_NS + index * STEP_NS
            bag.image("/front/image", picture(index, size, size * 4 // 3), stamp, "front_optical")
            bag.image("/front/label", picture(index, size, size * 4 // 3)[..., 0] % 11, stamp, "front_optical")
    return path


def storage_file(bag: Path) -> Path:
    return next(path for path in bag.iterdir() if path.name != "metadata.yaml")


def read_stamps(path: Path, topic: str = "/front/image") -> tuple[list[int], list[str]]:
    with BagReader(path) as bag:
        stamps = [(message.log_ns - START_NS) // STEP_NS for message in bag.messages([topic])]
        return stamps, bag.problems


@pytest.mark.parametrize(("storage", "compression"), FORMATS)
def test_every_storage_gives_back_what_was_written(tmp_path: Path, storage: str, compression: str) -> None:
    path = write_bag(tmp_path / "bag", storage=storage, compression=compression)
    with BagReader(path) as bag:
        assert {name: topic.count for name, topic in bag.topics.items()} == {
            "/front/image": 12,
            "/front/label": 12,
            "/labels": 1,
        }
        assert (bag.start_ns, bag.end_ns) == (START_NS, START_NS + 11 * STEP_NS)
        for index, message in enumerate(bag.messages(["/front/image"])):
            image = bag.deserialize(message)
            assert (image.encoding, image.step, image.header.frame_id) == ("rgb8", 192, "front_optical")
            assert np.array_equal(np.asarray(image.data).reshape(48, 64, 3), picture(index))
        assert index == 11
        assert bag.problems == []


def test_messages_come_in_log_time_within_the_asked_span(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag")
    with BagReader(path) as bag:
        times = [
            (m.log_ns - START_NS) // STEP_NS
            for m in bag.messages(["/front/image", "/front/label"], START_NS + 3 * STEP_NS, START_NS + 5 * STEP_NS)
        ]
    assert times == [3, 3, 4, 4]


@pytest.mark.parametrize("suffix", ["mcap", "db3"])
def test_a_single_storage_file_is_a_bag_too(tmp_path: Path, suffix: str) -> None:
    path = write_bag(tmp_path / "bag", storage={"mcap": "mcap", "db3": "sqlite3"}[suffix])
    assert read_stamps(storage_file(path))[0] == list(range(12))


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_missing_metadata_is_said_and_made_up_for(tmp_path: Path, storage: str) -> None:
    path = write_bag(tmp_path / "bag", storage=storage)
    (path / "metadata.yaml").unlink()
    stamps, problems = read_stamps(path)
    assert stamps == list(range(12))
    assert "metadata.yaml is missing" in problems[0]


def test_damaged_metadata_is_said_and_made_up_for(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag")
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: [broken")
    stamps, problems = read_stamps(path)
    assert stamps == list(range(12))
    assert "metadata.yaml is not readable" in problems[0]


@pytest.mark.parametrize("compression", ["none", "chunk"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_cut_mcap_gives_the_messages_before_the_cut(tmp_path: Path, compression: str, part: float) -> None:
    path = write_bag(tmp_path / "bag", frames=20, compression=compression, size=240)
    file = storage_file(path)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    stamps, problems = read_stamps(path)
    assert stamps == list(range(len(stamps)))
    assert len(stamps) >= 20 * part - 5
    assert any("cut" in problem for problem in problems), problems


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("compression", ["none", "chunk"])
def test_a_broken_stretch_of_an_mcap_is_left_out_and_reading_goes_on_behind_it(
    tmp_path: Path, compression: str, has_index: bool
) -> None:
    path = write_bag(tmp_path / "bag", frames=30, compression=compression, size=240)
    file = storage_file(path)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle - 300_000 : middle + 300_000] = b"\xff" * 600_000
    file.write_bytes(data if has_index else data[:-2000])
    stamps, problems = read_stamps(path)
    assert problems
    assert stamps == sorted(set(stamps)), "no message twice"
    assert stamps[0] == 0
    assert stamps[-1] >= 28
    assert 18 <= len(stamps) < 30  # mcap 1.6.0 and rosbags 0.11.9 stop at it, with 12 and 11


def test_broken_pages_of_an_sqlite_bag_cost_only_their_own_messages(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", frames=30, storage="sqlite3", size=240)
    file = storage_file(path)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 150 * 4096] = b"\xff" * (150 * 4096)
    file.write_bytes(data)
    stamps, problems = read_stamps(path)
    assert problems
    assert stamps[0] == 0
    assert stamps[-1] == 29
    assert 20 <= len(set(stamps)) == len(stamps) < 30


def test_a_cut_sqlite_bag_gives_the_messages_before_the_cut(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", frames=30, storage="sqlite3", size=240)
    file = storage_file(path)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6) // 4096 * 4096])
    stamps, problems = read_stamps(path)
    assert problems
    assert len(stamps) >= 14
    assert stamps == list(range(len(stamps)))


def test_a_cut_compressed_file_gives_the_messages_before_the_cut(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", frames=20, compression="file", size=240)
    file = storage_file(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    stamps, problems = read_stamps(path)
    assert problems
    assert len(stamps) >= 5
    assert stamps == list(range(len(stamps)))


def test_one_lost_file_of_a_split_bag_leaves_the_others(tmp_path: Path) -> None:
    first = write_bag(tmp_path / "first", frames=4)
    second = tmp_path / "bag"
    second.mkdir()
    shutil.copy(storage_file(first), second / "bag_0.mcap")
    (second / "bag_1.mcap").write_bytes(b"not an mcap file at all")
    stamps, problems = read_stamps(second)
    assert stamps == [0, 1, 2, 3]
    assert any("bag_1.mcap" in problem for problem in problems)


def test_what_is_no_bag_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.mcap").write_text("hello")
    (tmp_path / "text.db3").write_text("hello")
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    expectations = {
        "absent": "no such file or folder",
        "text.mcap": "not a readable .mcap",
        "text.db3": "not a readable .db3",
        "old.bag": "rosbags-convert",
        "empty": "not a rosbag2 recording",
        "picture.png": "not a rosbag2 recording",
    }
    for name, words in expectations.items():
        with pytest.raises(BagError, match=words) as caught:
            BagReader(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_topic_lists_what_is_there(tmp_path: Path) -> None:
    with (
        BagReader(write_bag(tmp_path / "bag", frames=1)) as bag,
        pytest.raises(BagError, match=r"/rear.*/front/image \(sensor_msgs/msg/Image, 1\)"),
    ):
        list(bag.messages(["/rear"]))


def test_a_message_of_another_type_than_it_says_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bag"
    with BagWriter(path) as bag:
        bag.write("/front/image", "sensor_msgs/msg/Image", b"\x00\x01\x00\x00\xff\xff", START_NS)
    with BagReader(path) as bag, pytest.raises(BagError, match="/front/image at 17"):
        bag.deserialize(next(bag.messages(["/front/image"])))


def test_an_existing_bag_is_never_overwritten(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "bag", frames=1)
    with pytest.raises(BagError, match="exists already"):
        BagWriter(path)


def test_a_bag_closed_by_an_error_can_be_read(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with BagWriter(tmp_path / "bag") as bag:
            bag.image("/front/image", picture(0), START_NS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert read_stamps(tmp_path / "bag") == ([0], [])


def test_calibration_and_diagnostics_are_read_back(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        matrix = np.array([[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
        bag.camera_info("/front/camera_info", START_NS, "front", width=64, height=48, matrix=matrix)
        bag.diagnostics("/weights", [Status(name="fog", message="0.7", values={"weight": "0.7"})], START_NS)
        bag.compressed_image("/front/image/compressed", picture(3), START_NS, format="png")
    with BagReader(tmp_path / "bag") as bag:
        messages = {m.topic: bag.deserialize(m) for m in bag.messages(list(bag.topics))}
    assert list(messages["/front/camera_info"].k) == [50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1]
    assert messages["/weights"].status[0].values[0].value == "0.7"
    assert messages["/front/image/compressed"].format == "png"


def test_reading_keeps_only_a_few_chunks_in_memory(tmp_path: Path) -> None:
    peaks = []
    for frames in (30, 150):
        path = write_bag(tmp_path / f"bag{frames}", frames=frames, size=240)
        with BagReader(path) as bag:
            tracemalloc.start()
            total = sum(len(message.data) for message in bag.messages(["/front/image"]))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert total > frames * 240 * 320 * 3
    assert peaks[1] < peaks[0] * 1.3 + 200_000


def test_a_write_that_fails_names_the_bag(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            write_bag(tmp_path / "bag", frames=40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.filename == str(tmp_path / "bag")
