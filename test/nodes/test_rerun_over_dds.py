"""What `semla view --rerun` hands on of a running node: images, masks, classes and the mix, as plain values."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from graph import PerceptionClient

from semla_ros.cli import main
from semla_ros.nodes.rerun_bridge import RerunBridge


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.names: Sequence[str] = ()
        self.seconds: list[float] = []
        self.images: list[tuple[str, np.ndarray]] = []
        self.masks: list[tuple[str, np.ndarray]] = []
        self.mixes: list[Mapping[str, float]] = []

    def classes(self, names: Sequence[str]) -> None:
        self.names = names

    def time(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def image(self, camera: str, pixels: np.ndarray) -> None:
        self.images.append((camera, pixels))

    def mask(self, camera: str, mask: np.ndarray) -> None:
        self.masks.append((camera, mask))

    def mix(self, shares: Mapping[str, float]) -> None:
        self.mixes.append(shares)


@pytest.fixture(scope="module")
def sink(perception: PerceptionClient) -> Iterator[Sink]:
    sink, ends = Sink(), threading.Event()
    bridge = RerunBridge(perception.prefix, sink)

    def spin() -> None:
        while not ends.is_set():
            bridge.spin()

    thread = threading.Thread(target=spin)
    thread.start()
    yield sink
    ends.set()
    thread.join()
    bridge.close()


def test_images_masks_classes_and_the_mix_arrive(perception: PerceptionClient, sink: Sink) -> None:
    for _ in range(600):
        if sink.images and sink.masks and sink.mixes and sink.names:
            break
        perception._image.publish(perception.image(40))  # 'send' waits for the node to be the only listener
        threading.Event().wait(0.1)
    assert sink.names
    (camera, pixels), (same_camera, mask) = sink.images[0], sink.masks[0]
    assert pixels.ndim == 3
    assert mask.shape == pixels.shape[:2]
    assert mask.max() < len(sink.names)
    assert camera == same_camera == "camera"
    assert sum(sink.mixes[0].values()) == pytest.approx(1, abs=1e-6)
    assert sink.seconds


def test_a_node_that_is_not_there_is_named_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rerun", reason="rerun-sdk is not installed")
    file = tmp_path / "drive.rrd"
    assert main(["view", "--node", "/nobody", "--rerun", str(file), "--duration", "0.1"]) == 0
    assert "passed on 0 messages: /nobody was not there" in capsys.readouterr().out
    assert file.is_file()
