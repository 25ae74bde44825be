"""The node on a real, tiny and random model and library from folders: it adapts, and its library changes live."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from graph import LATCHED, Graph, PerceptionClient, wait_for
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tiny_parts import ADAPTERS, CLASSES

from semla_ros.nodes.messages import byte_array
from semla_ros.results import BASE_MODEL

CYCLES = 25
MODULE = ("-m", "semla_ros.nodes.perception_node")


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
    log = real.process.output
    assert re.search(rf"generation \d+ \(drift\): {mix.status[0].name} \d+\.\d%(, |$)", log, re.MULTILINE), log
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
