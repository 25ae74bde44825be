"""Life cycle, threads and several cameras, from outside the process."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from costless_node import HEAVY_MIB
from graph import LATCHED, RELIABLE, SEGMENT, Graph, PerceptionClient, start_costless, wait_for
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

CYCLES = 50


def test_fifty_cycles_leave_no_thread_file_or_memory_behind(graph: Graph) -> None:
    client = PerceptionClient(graph, "cycles")
    process = start_costless(graph, "cycles", autostart=False, model="moody")  # every second load ends in an error
    client.wait_for_state("unconfigured")
    system = psutil.Process(process.pid)

    def held() -> tuple[int, int]:
        return system.num_threads(), system.num_fds()

    for cycle in range(CYCLES):
        assert not client.transition("configure")
        assert client.state() == "unconfigured"
        for name in ("configure", "activate", "deactivate", "cleanup"):
            assert client.transition(name), f"{name} in cycle {cycle}:\n{process.output}"
        if cycle == 4:  # caches of the middleware have filled
            first, memory = held(), system.memory_info().rss
    assert held()[0] <= first[0] + 1
    assert held()[1] <= first[1] + 2
    assert system.memory_info().rss < 1.05 * memory
    assert client.state() == "unconfigured"
    assert process.stop() == 0, process.output


def test_the_node_answers_while_it_configures_and_refuses_a_second_transition(graph: Graph, tmp_path: Path) -> None:
    client = PerceptionClient(graph, "slow")
    process = start_costless(graph, "slow", model=tmp_path / "model.ready")
    client.wait_for_message("node", "loading model")
    assert client.state() == "configuring"
    assert client.parameter("top_k") == 5
    assert not client.transition("configure")
    (tmp_path / "model.ready").touch()
    client.wait_for_state("active")
    assert client.parameter("top_k") == 3
    assert process.stop() == 0, process.output


def test_an_impossible_transition_is_refused_and_survived(graph: Graph) -> None:
    client = PerceptionClient(graph, "impossible")
    process = start_costless(graph, "impossible", autostart=False)
    client.wait_for_state("unconfigured")
    assert not client.transition("activate")
    assert client.transition("configure")
    assert not client.transition("configure")
    assert client.transition("activate")
    assert client.transition("shutdown")
    assert client.state() == "finalized"
    assert process.stop(signal.SIGTERM) == 0, process.output


def test_an_inactive_node_takes_no_images_and_forgets_none_of_its_settings(graph: Graph) -> None:
    client = PerceptionClient(graph, "inactive")
    process = start_costless(graph, "inactive", top_k=2)
    client.wait_for_state("active")
    masks = graph.collect(Image, f"{client.prefix}/mask")
    assert client.set_parameters(temperature=0.5).successful
    client.send(client.image())
    wait_for(lambda: masks, "a mask")
    assert client.transition("deactivate")
    assert wait_for(lambda: client._image.get_subscription_count() == 0, "no subscription")
    assert client.transition("cleanup")
    assert client.transition("configure")
    assert client.transition("activate")
    assert (client.parameter("top_k"), client.parameter("temperature")) == (2, 0.5)
    masks.clear()
    wait_for(lambda: client.send(client.image()) and masks, "a mask after the restart")
    assert process.stop() == 0, process.output


def test_a_cleanup_ends_what_a_service_said_and_the_node_starts_frozen_again(graph: Graph) -> None:
    client = PerceptionClient(graph, "starts_frozen")
    process = start_costless(graph, "starts_frozen", start_frozen=True)
    client.wait_for_state("active")

    def wait_until_frozen(answer: str) -> None:
        wait_for(lambda: client.values("adaptation").get("Frozen") == answer, f"'Frozen' to be {answer}")

    wait_until_frozen("yes")
    assert client.switch("freeze_adaptation", False).success
    wait_until_frozen("no")
    assert client.transition("deactivate")
    assert client.transition("activate")
    wait_until_frozen("no")
    for name in ("deactivate", "cleanup", "configure", "activate"):
        assert client.transition(name)
    wait_until_frozen("yes")
    assert process.stop() == 0, process.output


@pytest.mark.parametrize("is_asked", [True, False], ids=["asked", "not asked"])
def test_deactivating_gives_back_the_model_where_asked_and_activating_brings_it_back(
    graph: Graph, is_asked: bool
) -> None:
    name = "releasing" if is_asked else "keeping"
    client = PerceptionClient(graph, name)
    process = start_costless(graph, name, model="heavy", release_on_deactivate=is_asked)
    client.wait_for_state("active")
    system = psutil.Process(process.pid)
    labels = graph.collect(String, f"{client.prefix}/labels", LATCHED)
    assert client.set_parameters(classes=["a", "b"], temperature=0.5).successful
    loaded = system.memory_info().rss
    assert client.transition("deactivate")
    freed = loaded - system.memory_info().rss
    assert (freed > 0.9 * (HEAVY_MIB << 20)) == is_asked
    answer = graph.call(Trigger, f"{client.prefix}/reset_adaptation", Trigger.Request())
    assert answer.success != is_asked
    assert ("holds no model: activate it first" in answer.message) == is_asked
    assert client.set_parameters(top_k=2).successful
    masks = graph.collect(Image, f"{client.prefix}/mask")
    assert client.transition("activate")
    wait_for(lambda: client.send(client.image(3)) and masks, "a mask after the release")
    assert set(masks[-1].data) == {1}  # 3 modulo the two classes
    assert system.memory_info().rss > loaded - 0.1 * (HEAVY_MIB << 20)
    assert [client.parameter(item) for item in ("classes", "temperature", "top_k")] == [["a", "b"], 0.5, 2]
    wait_for(lambda: [item["name"] for item in json.loads(labels[-1].data)["classes"]] == ["a", "b"], "labels")
    assert client.transition("deactivate")
    assert client.transition("cleanup")
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output, process.output


def shared_memory(pid: int) -> list[Path]:
    """The middleware's segments that are a process's own: it keeps their lock files open, which no reader does.

    Ports ('fastrtps_port...') are left out: they outlive their reader where a writer has just opened them.
    """
    matches = (re.fullmatch(rf"({SEGMENT}[0-9a-f]{{16}})_el", item.path) for item in psutil.Process(pid).open_files())
    return [Path(match[1]) for match in matches if match]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_under_load_ends_the_process_cleanly(graph: Graph, number: signal.Signals) -> None:
    namespace = f"ended_by_{number.name.lower()}"
    client = PerceptionClient(graph, namespace)
    process = start_costless(graph, namespace)
    client.wait_for_state("active")
    segments = shared_memory(process.pid)
    assert segments
    for _ in range(20):
        client.send(client.image(size=(480, 640)))
    assert process.stop(number) == 0, process.output
    assert "Traceback" not in process.output
    assert not [path for segment in segments for path in segment.parent.glob(f"{segment.name}*")]


def test_a_signal_while_the_model_loads_ends_the_process_cleanly(graph: Graph, tmp_path: Path) -> None:
    client = PerceptionClient(graph, "ended_while_loading")
    process = start_costless(graph, "ended_while_loading", model=tmp_path / "model.ready")
    client.wait_for_message("node", "loading model")
    threading.Timer(0.5, (tmp_path / "model.ready").touch).start()
    assert process.stop() == 0, process.output
    assert "Traceback" not in process.output, process.output


def test_cameras_share_a_model_and_are_answered_on_topics_of_their_own(graph: Graph) -> None:
    client = PerceptionClient(graph, "rig")
    process = start_costless(graph, "rig", cameras="[front,left]")
    client.wait_for_state("active")
    publishers = {
        name: graph.node.create_publisher(Image, f"/rig/{name}/image", RELIABLE) for name in ("front", "left")
    }
    masks = {name: graph.collect(Image, f"{client.prefix}/{name}/mask") for name in publishers}
    labels = graph.collect(String, f"{client.prefix}/labels", RELIABLE)
    wait_for(lambda: all(item.get_subscription_count() for item in publishers.values()), "subscriptions")

    def both() -> bool:
        for value, (name, publisher) in enumerate(publishers.items()):
            publisher.publish(client.image(value, frame_id=name))
        time.sleep(0.05)
        return all(masks.values())

    wait_for(both, "masks of both cameras")
    assert {masks[name][-1].header.frame_id for name in masks} == {"front", "left"}
    assert (masks["front"][-1].data[0], masks["left"][-1].data[0]) == (0, 1)
    assert client.status("camera front") is not None
    assert not labels  # latched only: nothing new was published
    assert process.stop() == 0, process.output


def test_cameras_are_answered_at_once_where_asked_and_a_broken_image_costs_its_own_camera_only(graph: Graph) -> None:
    client = PerceptionClient(graph, "batch")
    process = start_costless(graph, "batch", model="slow", cameras="[front,left]", max_batch=2)
    client.wait_for_state("active")
    publishers = {
        name: graph.node.create_publisher(Image, f"/batch/{name}/image", RELIABLE) for name in ("front", "left")
    }
    masks = {name: graph.collect(Image, f"{client.prefix}/{name}/mask") for name in publishers}
    wait_for(lambda: all(item.get_subscription_count() for item in publishers.values()), "subscriptions")

    def show(*, is_left_broken: bool = False) -> None:
        for value, (name, publisher) in enumerate(publishers.items()):
            image = client.image(value, frame_id=name)
            if is_left_broken and name == "left":
                image.data = image.data[:3]
            publisher.publish(image)
        time.sleep(0.05)

    wait_for(lambda: [show(), "a batch of 2" in process.output][1], "two cameras in one batch")
    wait_for(lambda: all(masks.values()), "masks of both cameras")
    for value, (name, heard) in enumerate(masks.items()):
        assert {mask.header.frame_id for mask in heard} == {name}
        assert {mask.data[0] for mask in heard} == {value}
    for heard in masks.values():
        heard.clear()
    wait_for(
        lambda: [
            show(is_left_broken=True),
            int(client.values("camera left").get("Dropped: broken image", 0)) > 0,
        ][1],
        "a broken image that is counted",
    )
    wait_for(lambda: masks["front"], "masks of the other camera")
    assert "Dropped: broken image" not in client.values("camera front")
    assert "Traceback" not in process.output, process.output
    assert process.stop() == 0, process.output


def test_each_camera_may_have_a_model_of_its_own(graph: Graph) -> None:
    client = PerceptionClient(graph, "own_models")
    process = start_costless(graph, "own_models", cameras="[front,left]", adaptation_scope="camera")
    client.wait_for_state("active")
    wait_for(lambda: client.status("adaptation of left"), "adaptation of the left camera")
    assert client.set_parameters(classes=["a", "b"]).successful
    wait_for(lambda: client.values("adaptation of front")["Generation"] == "1", "new classes in front")
    wait_for(lambda: client.values("adaptation of left")["Generation"] == "1", "new classes on the left")
    assert process.stop() == 0, process.output
