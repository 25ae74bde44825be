"""The node on a real, tiny and random model and library from folders: it adapts, and its library changes live."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import LATCHED, Graph, PerceptionClient, wait_for
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tiny_parts import ADAPTERS, CLASSES

from bench.soak_images import encode
from semla_ros.nodes.messages import byte_array
from semla_ros.results import BASE_MODEL

CYCLES = 25
KINDS = ("rgb8", "bgra8", "nv12", "yuv422", "bayer_rggb16", "mono8")
MODULE = ("-m", "semla_ros.nodes.perception")


def start(graph: Graph, name: str, model: Path, library: Path):
    return graph.start(
        *MODULE,
        namespace=name,
        model=model,
        library=library,
        watch_library_s=0.2,
        **{"diagnostics.period_s": 0.1, "diagnostics.hardware_id": name},
    )


@pytest.fixture
def real(graph: Graph, tiny_model_folder: Path, library_copy: Path) -> Iterator[PerceptionClient]:
    client = PerceptionClient(graph, "real")
    (library_copy / "library.yaml").write_text("retrieval: {fade_out_of_library: false}")  # noise is strange to it
    process = start(graph, "real", tiny_model_folder, library_copy)
    client.wait_for_state("active")
    client.library = library_copy
    client.process = process
    yield client
    assert process.is_alive, process.output
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output, process.output


def test_a_node_on_files_adapts_and_follows_its_library_folder(graph: Graph, real: PerceptionClient) -> None:
    masks = graph.collect(Image, f"{real.prefix}/mask")
    weights = graph.collect(DiagnosticArray, f"{real.prefix}/adapter_weights", LATCHED)
    rng = np.random.default_rng(0)

    def send_noise() -> None:
        image = real.image(size=(48, 64))
        image.data = byte_array(rng.integers(0, 256, (48, 64, 3), np.uint8))
        real.send(image)

    def fused() -> DiagnosticArray | None:
        send_noise()
        mixes = [message for message in weights if len(message.status) > 1]
        return mixes[-1] if mixes else None

    mix = wait_for(fused, f"a mix: {real.values('adaptation')}")
    assert {status.name for status in mix.status} <= {*ADAPTERS, BASE_MODEL}
    line = rf"generation \d+ \(drift\): {mix.status[0].name} \d+\.\d%(, |$)"
    wait_for(lambda: re.search(line, real.process.output, re.MULTILINE), f"{line} in the log")
    assert real.parameter("classes") == list(CLASSES)
    wait_for(lambda: masks, "a mask")
    assert {*np.frombuffer(masks[-1].data, np.uint8)} <= {*range(len(CLASSES)), 255}

    heaviest = mix.status[0].name
    other = next(name for name in ADAPTERS if name != heaviest)
    shutil.copytree(real.library / other, real.library / "another")
    (real.library / "another" / f"{other}_statistics.npz").rename(real.library / "another" / "another_statistics.npz")
    wait_for(lambda: real.values("adaptation")["Adapters in library"] == "5", "the adapter that was added")

    weights_file = real.library / other / "adapter_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:1000])
    shutil.rmtree(real.library / heaviest)
    status = real.wait_for_message("adaptation", f"'{other}'")
    assert status.level == DiagnosticStatus.WARN
    wait_for(lambda: real.values("adaptation")["Adapters in library"] == "3", "the two that are gone")
    before = len(masks)
    wait_for(lambda: send_noise() or len(masks) > before, "masks after the change")
    wait_for(lambda: heaviest not in real.values("adaptation")["Mix"], "a mix without the adapter that is gone")

    answer = graph.call(Trigger, f"{real.prefix}/reload_library", Trigger.Request())
    assert answer.success
    assert f"'{other}'" in answer.message


def test_a_missing_library_folder_leaves_the_node_up_with_the_reason(
    graph: Graph, tiny_model_folder: Path, tmp_path: Path
) -> None:
    client = PerceptionClient(graph, "no_library")
    process = start(graph, "no_library", tiny_model_folder, tmp_path / "nowhere")
    status = client.wait_for_message("node", "nowhere")
    assert status.level == DiagnosticStatus.ERROR
    assert "adapter library" in status.message
    assert client.state() == "unconfigured"
    assert process.stop() == 0, process.output


def test_a_library_that_cannot_be_read_is_told_until_it_can(graph: Graph, real: PerceptionClient) -> None:
    assert real.set_parameters(diagnostics__hold_s=0.3).successful
    aside = real.library.with_name("aside")
    real.library.rename(aside)
    status = real.wait_for_message("node", "the adapter library cannot be read")
    assert status.level == DiagnosticStatus.WARN
    assert "the one in memory stays in use" in status.message
    reports = real.reports
    wait_for(lambda: real.reports > reports + 10, "reports")  # longer than refusals are told
    assert "cannot be read" in real.status("node").message
    aside.rename(real.library)
    wait_for(lambda: real.status("node").level == DiagnosticStatus.OK, "a library that is back")


def test_a_raw_8k_image_of_any_kind_is_answered_or_dropped_for_a_reason_in_less_than_a_second_of_its_turn(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(graph.environment, "OMP_NUM_THREADS", "1")  # threads that wait for each other take time, too
    client = PerceptionClient(graph, "real_8k")
    parameters = {"diagnostics.period_s": 0.2, "diagnostics.hardware_id": "real_8k"}
    reliable = {"qos_overrides./real_8k/image.subscription.reliability": "reliable"}
    process = graph.start(*MODULE, namespace="real_8k", **parameters, **reliable)
    client.wait_for_state("active")
    masks = graph.collect(Image, f"{client.prefix}/mask")

    def account() -> tuple[int, int]:
        """Images received, and those answered or dropped for a reason, once nothing changes any more."""
        counts: list[tuple[int, int]] = []
        while len(counts) < 4 or len(set(counts[-4:])) > 1 or counts[-1][0] != counts[-1][1]:
            reports = client.reports
            wait_for(lambda reports=reports: client.reports > reports, "a report")
            values = client.values("camera")
            done = [key for key in values if key == "Masks published" or key.startswith("Dropped: ")]
            counts.append((int(values["Images received"]), sum(int(values[key]) for key in done)))
        return counts[-1]

    small = np.random.default_rng(0).integers(0, 256, (240, 426, 3), np.uint8)
    large = cv2.resize(small, (7680, 4320))
    wait_for(lambda: client.send(client.image(size=(48, 64))) and masks, "the first mask")
    account()
    system, seconds = psutil.Process(process.pid), dict[str, float]()
    memory: list[int] = []
    for encoding in KINDS:
        picture = encode(large, encoding, padding=4)
        message = Image(data=byte_array(picture.data))
        for field in ("encoding", "width", "height", "step"):
            setattr(message, field, getattr(picture, field))
        for turn in ("first", "second"):
            message.header = client.image(frame_id=f"{encoding} {turn}").header
            used_s = sum(system.cpu_times()[:2])
            client.send(message)
            (mask,) = wait_for(
                lambda name=message.header.frame_id: [mask for mask in masks if mask.header.frame_id == name], encoding
            )
            used_s = sum(system.cpu_times()[:2]) - used_s
            memory.append(system.memory_info().rss)
            seconds[encoding] = min(used_s, seconds.get(encoding, used_s))
            assert (mask.height, mask.width) == (4320, 7680)
    # What a turn takes, receiving the image included, by the processor's time: on a busy machine it has to wait.
    print(f"seconds of one core: {seconds}")
    assert max(seconds.values()) < 1.0, seconds
    received = account()[0]
    for _ in range(4):  # faster than they can be answered
        client.send(message)
    wait_for(lambda: int(client.values("camera")["Images received"]) > received, "one of them")
    account()
    # What malloc keeps of them is given back, without another image.
    wait_for(lambda: system.memory_info().rss < max(memory) - 100e6, f"less memory than {memory}")
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output, process.output


def test_cycles_with_a_model_leave_no_memory_behind(
    graph: Graph, tiny_model_folder: Path, tiny_library_folder: Path
) -> None:
    client = PerceptionClient(graph, "real_cycles")
    process = start(graph, "real_cycles", tiny_model_folder, tiny_library_folder)
    client.wait_for_state("active")
    masks = graph.collect(Image, f"{client.prefix}/mask")
    system = psutil.Process(process.pid)
    memory = []
    for cycle in range(CYCLES):
        masks.clear()
        wait_for(lambda: client.send(client.image(size=(48, 64))) and masks, f"a mask in cycle {cycle}")
        for name in ("deactivate", "cleanup", "configure", "activate"):
            assert client.transition(name), f"{name} in cycle {cycle}:\n{process.output}"
        memory.append(system.memory_info().rss)
    assert memory[-1] < 1.01 * memory[4], memory  # a model that stays behind would add more than that each cycle
    assert process.stop() == 0, process.output
