"""Endurance: thousands of mixed and broken images through the real node, while all that can change does.

The run has parts, raw and compressed images in turn. In each the node is a process of its own, over DDS.
`qos_overrides` make its input reliable and deep, so that every image sent is also taken, except around a life-cycle
change, and the account has to come out to the last image: received = answered + dropped for a reason. The figures of
each part that is done are in `soak.json`: a run that was interrupted goes on with the next one.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.children import Children
from bench.soak_client import IN_FLIGHT, SoakClient
from bench.soak_images import COMPRESSED_FAULTS, FAULTS, Picture, Stamps, broken, make_pictures
from bench.soak_library import ChangingLibrary
from semla_ros.config import InferenceConfig, SemlaConfig
from semla_ros.errors import ConfigError, SemlaError, counted
from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.lab.processes import Child
from semla_ros.lab.world.caption import SYNONYMS
from semla_ros.pipeline_parts import load_parts
from semla_ros.resources import model_library
from semla_ros.serving.memory import GIVE_BACK_EVERY_S

TRANSPORTS = ("raw", "compressed")
BROKEN_SHARE = 0.3
CHANGE_EVERY_S = 1.0
STORM_SHARE, STORM = 0.1, 20  # so often so many changes, as fast as they can be asked for
MOST_OPEN_CALLS = 8  # a service of ROS keeps ten requests; what is more than that is lost on the way
TRANSITION_EVERY = (100, 500)  # images between two life-cycle changes, at least and at most
LIFE_CYCLES = (
    ("deactivate", "activate"),
    ("deactivate", "cleanup", "configure", "activate"),
)
CALL_S = 120.0
RELOAD_EVERY_S = 10.0
LISTENERS_EVERY_S = 15.0  # subscribers of overlay, confidence and compressed mask come and go
BROKEN_TURN_S = 0.02
BURST_EVERY, BURST = 50, 4  # so many images at once, so that some are overtaken
PICTURES = 120
START_S, SETTLE_S = 180.0, 60.0

# Memory is looked at after these parts of the run, each time in the same state: configured anew, with these settings,
# while the same images are answered, and in a pause in which malloc gives back what is free: the least it is then,
# since each report and each turn of the adaptation takes and leaves some 10 MB. Before the first time everything comes
# by several times: what is made once for each of it and kept is no growth.
LOOKS = (0.2, 0.6, 1.0)
LOOK_SETTINGS: dict[str, Any] = {
    "classes": ["road", "sidewalk", "building", "car", "person", "sky"], "top_k": 3, "temperature": 0.05,
    "distance": "euclidean", "mix_threshold": 0.1, "steady_s": 2.0, "retrieval_rate_hz": 5.0,
    "max_fusions_per_min": 60.0,
}  # fmt: skip
LOOK_PICTURES, PAUSE_S, REST_LOOK_EVERY_S = 100, GIVE_BACK_EVERY_S + 5.0, 0.5
MEMORY_FRAMES = 2000  # a shorter run ends before that, and its memory is told, not judged
MAX_GROWTH = 0.02

# Every name and synonym that the shipped model was trained with: several dozen classes.
MANY_CLASSES = sorted({name for names in SYNONYMS.values() for name in names})
# Values of live parameters, and whether the node is to take them.
CHANGES: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"top_k": 1}, True),
    ({"temperature": 0.5, "overlay_alpha": 0.2}, True),
    ({"top_k": 0}, False),
    ({"classes": ["road", "sky", "building"]}, True),
    ({"mix_threshold": 0.05, "steady_s": 1.0}, True),
    ({"classes": ["road", "road"]}, False),
    ({"retrieval_rate_hz": 5.0, "max_fusions_per_min": 60.0}, True),
    ({"top_k": 8, "temperature": 0.02}, True),
    ({"model": "catseg-l"}, False),
    ({"classes": ["road", "sidewalk", "building", "car", "person", "tree", "sky", "pole", "sign"]}, True),
    ({"topk": 3}, False),
    ({"top_k": 3, "mix_threshold": 5.0}, False),
    ({"distance": "cosine"}, True),
    ({"classes": MANY_CLASSES}, True),
    ({"classes": ["road", "flying saucer"]}, False),  # no words of the shipped model
    ({"distance": "euclidean"}, True),
    ({"temperature": "hot"}, False),
    ({"temperature": float("nan")}, False),
    ({"temperature": float("inf"), "top_k": 2}, False),
    ({"top_k": [1, 2]}, False),
    ({"classes": "road"}, False),
    ({"classes": [""]}, True),  # the model's own list again
    ({"watch_library_s": 0.5}, False),  # not while it runs
    ({"max_image_pixels": 5, "top_k": 5}, False),
    ({"overlay_alpha": True}, False),
    ({"steady_s": -1.0}, False),
)
RIGHT_CHANGES = tuple(values for values, is_right in CHANGES if is_right)
# Of a part, what is added up over all of them.
COUNTS = (
    "sent", "sent_broken", "sent_around_changes", "received", "answered", "masks", "masks_of_broken",
    "masks_of_damaged", "wrong_masks", "unasked_masks", "changes", "changes_refused", "changes_unanswered",
    "changes_misjudged", "refusals_without_reason", "transitions", "transitions_unanswered", "transitions_misjudged",
    "reloads", "reload_calls", "reloads_unanswered", "reloads_failed", "reloads_with_a_broken_adapter",
    "generations", "tracebacks", "crashes", "unaccounted", "elapsed_s",
)  # fmt: skip


def measure(
    frames: int = 10000,
    model: str = "semla-tiny",
    library: str = "",
    seed: int = 0,
    part: int = 5000,
    out: Path = Path("out/bench"),
) -> dict[str, object]:
    """Run the soak, or those parts of it that are not done yet.

    Args:
        frames: Images in all.
        model: Model id or folder.
        library: Adapter library; empty: the model's own. The node gets a copy.
        seed: Of everything that is random.
        part: Images in each part.
        out: Where `soak.json` is.

    Returns:
        The sums over all parts, the `parts`, `failures` (one sentence each) and `passed`.

    Raises:
        ConfigError: `out` holds an unfinished run of other settings.
        SemlaError: Model and library cannot be loaded together.
    """
    if frames < 1 or part < 1:
        raise ConfigError(f"a soak needs at least one image in all and in each part, got {frames} and {part}")
    settings = {"frames": frames, "part": part, "model": model, "library": library, "seed": seed}
    path = out / "soak.json"
    sizes = [min(part, frames - start) for start in range(0, frames, part)]
    parts = _done(path, settings)
    # A node whose files do not fit waits for better ones, and the soak would wait for the node.
    load_parts(SemlaConfig(model=model, library=library, inference=InferenceConfig(device="cpu")))
    for index, size in list(enumerate(sizes))[len(parts) :]:
        parts.append(_measure_part(index, size, model, library, seed))
        _write(path, {"settings": settings, "parts": parts})
    return total(parts)


def _done(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of an unfinished run of the same settings; none where there is none, or it is finished."""
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        parts, found = list(record["parts"]), record["settings"]
        is_finished = len(parts) >= -(-found["frames"] // found["part"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no record of a soak ({error!r}); remove it or give another --out") from None
    if is_finished:
        return []
    if found != settings:
        raise ConfigError(
            f"{path} holds {counted(len(parts), 'part')} of an unfinished run of other settings ({found}); go on with "
            "those, give another --out or remove it"
        )
    return parts


def _write(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".json.new")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def total(parts: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Sums over the parts, the largest growth among those whose memory is judged, and what each did not hold."""
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part["dropped"])
    judged = [part["memory_growth"] for part in parts if part["sent"] >= MEMORY_FRAMES]
    found = [f"part {index}: {sentence}" for index, part in enumerate(parts, 1) for sentence in part["failures"]]
    return {
        **{key: sum(part[key] for part in parts) for key in COUNTS},
        "dropped": dict(dropped),
        "memory_growth": max(judged, default=None),
        "parts": list(parts),
        "failures": found,
        "passed": not found,
    }


def _measure_part(index: int, frames: int, model: str, library: str, seed: int) -> dict[str, Any]:
    """One part, with a node of its own."""
    rng = np.random.default_rng((seed, index))
    transport = TRANSPORTS[index % len(TRANSPORTS)]
    is_compressed = transport == "compressed"
    pictures = make_pictures(PICTURES, (seed, index), is_compressed=is_compressed)
    faults = COMPRESSED_FAULTS if is_compressed else FAULTS
    # Six rounds: each fault meets all forms of compressed images.
    faulty = [broken(pictures[start + number], fault) for start in range(6) for number, fault in enumerate(faults)]
    environment = isolated_environment(free_domain())
    os.environ.update(environment)
    crash = ""
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        source = Path(library) if library else model_library(model)
        changing = ChangingLibrary(source, Path(folder) / "library", seed + index)
        log = Path(folder) / "perception.log"
        child = children.start("perception node", _command(model, changing.folder, transport), environment, log)
        client = SoakClient(transport)
        try:
            client.wait_until_active(START_S, children.check)
            client.begin(pictures[0], START_S)
            start_s = time.monotonic()
            memory: list[tuple[int, float]] = []
            looks: list[tuple[float, float]] = []
            try:
                _drive(client, child, children, changing, frames, pictures, faulty, rng, memory, looks)
                client.settle(SETTLE_S)
                threads = psutil.Process(child.pid).num_threads()
            except (SemlaError, psutil.Error) as error:  # the node has ended, or a transition never does
                crash, threads = str(error), 0
            elapsed_s = time.monotonic() - start_s
            figures = client.account() | {"elapsed_s": elapsed_s, "reloads": changing.reloads, **growth(memory, looks)}
            figures |= {"transport": transport, "threads": threads, "crashes": int(bool(crash)), "crash": crash}
        finally:
            client.close()
        figures["exit_status"] = child.stop(grace_s=30.0)
        output = log.read_text(encoding="utf-8", errors="replace")
        figures["tracebacks"] = output.count("Traceback (most recent call last)")
        start = output.find("Traceback (most recent call last)")
        figures["first_traceback"] = output[start : start + 3000] if start >= 0 else ""
    found = failures(figures)
    return {**figures, "unaccounted": _unaccounted(figures), "failures": found, "passed": not found}


def _command(model: str, library: Path, transport: str) -> list[str]:
    topic = "/image" if transport == "raw" else "/image/compressed"
    parameters = {
        "model": model,
        "library": library,
        "device": "cpu",
        "image_transport": transport,
        f"qos_overrides.{topic}.subscription.reliability": "reliable",
        f"qos_overrides.{topic}.subscription.depth": 100,
        "qos_overrides./perception/mask.publisher.depth": 100,
    }
    given = [item for key, value in parameters.items() for item in ("-p", f"{key}:={value}")]
    return [sys.executable, "-m", "semla_ros.nodes.perception", "--ros-args", *given]


def _drive(
    client: SoakClient,
    child: Child,
    children: Children,
    changing: ChangingLibrary,
    frames: int,
    pictures: Sequence[Any],
    faulty: Sequence[Any],
    rng: np.random.Generator,
    memory: list[tuple[int, float]],
    looks: list[tuple[float, float]],
) -> None:
    """Send all images.

    The node's resident memory in MB goes into `memory`, once per second as (images sent, MB), and into `looks`.
    """
    process, stamps = psutil.Process(child.pid), Stamps(rng)
    change_s = listeners_s = time.monotonic()
    reload_s = change_s - RELOAD_EVERY_S / 2
    least, most = (min(count, max(1, frames // share)) for count, share in zip(TRANSITION_EVERY, (6, 2), strict=True))
    next_transition = int(rng.integers(least, most + 1))
    for index in range(frames):
        is_broken, is_burst = rng.random() < BROKEN_SHARE, index % BURST_EVERY < BURST
        # A drive: its pictures come in order, each a few times, as fast as the node takes them.
        picture = faulty[int(rng.integers(len(faulty)))] if is_broken else pictures[index // 4 % len(pictures)]
        if not is_burst:
            client.wait_for_turn(in_flight=1 if is_broken else IN_FLIGHT)
        client.send(picture, stamps.next())
        if is_broken and not is_burst:
            time.sleep(BROKEN_TURN_S)  # nothing comes back for it, and the next one must not overtake it
        if index == next_transition:
            next_transition += int(rng.integers(least, most + 1))
            cycle = LIFE_CYCLES[rng.integers(len(LIFE_CYCLES))]
            changes = [RIGHT_CHANGES[rng.integers(len(RIGHT_CHANGES))] for _ in cycle]
            _change_life_cycle(client, children, cycle, changes)
        now_s = time.monotonic()
        if now_s - change_s >= CHANGE_EVERY_S:
            change_s = now_s
            children.check()
            for _ in range(STORM if rng.random() < STORM_SHARE else 1):
                _wait(lambda: client.open_calls() < MOST_OPEN_CALLS, children, "parameter changes")
                client.change(*CHANGES[rng.integers(len(CHANGES))])
            memory.append((index, process.memory_info().rss / 1e6))
        if now_s - reload_s >= RELOAD_EVERY_S:
            reload_s = now_s
            changing.change()
            client.reload()
        if now_s - listeners_s >= LISTENERS_EVERY_S:
            listeners_s = now_s
            client.toggle_listeners()
        if frames >= MEMORY_FRAMES and index + 1 in [round(part * frames) for part in LOOKS]:
            if not looks:
                _meet_all(client, children, pictures)
            looks.append(_look_at_memory(client, process, children, pictures[:LOOK_PICTURES]))
    memory.append((frames, process.memory_info().rss / 1e6))


def _meet_all(client: SoakClient, children: Children, pictures: Sequence[Picture]) -> None:
    """Every class list with images of every size and a new model, with and without listeners to all outputs."""
    lists = [values["classes"] for values in (*RIGHT_CHANGES, LOOK_SETTINGS) if "classes" in values]
    of_each_size = list({(picture.height, picture.width): picture for picture in pictures}.values())
    for _ in range(2):
        client.toggle_listeners()
        for names in lists:
            _change_life_cycle(client, children, LIFE_CYCLES[1], [LOOK_SETTINGS] * len(LIFE_CYCLES[1]))
            client.change({"classes": names, "top_k": 8, "temperature": 0.5}, True)
            _wait(lambda: not client.open_calls(), children, "a parameter change")
            _answer(client, of_each_size)


def _answer(client: SoakClient, pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        client.wait_for_turn()
        client.send(picture, divmod(time.time_ns(), 1_000_000_000))


def _look_at_memory(
    client: SoakClient, process: psutil.Process, children: Children, pictures: Sequence[Picture]
) -> tuple[float, float]:
    """Resident memory in MB: the median while images are answered, and the least in a pause."""
    _change_life_cycle(client, children, LIFE_CYCLES[1], [LOOK_SETTINGS] * len(LIFE_CYCLES[1]))
    client.change(LOOK_SETTINGS, True)
    client.stop_listening()
    at_work = []
    for picture in pictures:
        _answer(client, [picture])
        at_work.append(process.memory_info().rss / 1e6)
    at_rest = []
    end_s = time.monotonic() + PAUSE_S
    while time.monotonic() < end_s:
        children.check()
        at_rest.append(process.memory_info().rss / 1e6)
        time.sleep(REST_LOOK_EVERY_S)
    return statistics.median(at_work[len(at_work) // 2 :]), min(at_rest)


def _change_life_cycle(
    client: SoakClient, children: Children, cycle: Sequence[str], changes: Sequence[dict[str, Any]]
) -> None:
    """Through some states and back to active, with a parameter change in each, right after an image was sent."""
    _wait(lambda: not client.open_calls(), children, "a call")  # a reload is refused where there is no model
    refused = client.transition("configure", is_right=False)
    _wait(refused.done, children, "a transition that is impossible")
    with client.around_change():
        for name, values in zip(cycle, changes, strict=True):
            call = client.transition(name)
            client.change(values, None)
            _wait(call.done, children, name)
        _wait(client.is_subscribed, children, "the subscription")


def _wait(is_done: Callable[[], bool], children: Children, what: str) -> None:
    end_s = time.monotonic() + CALL_S
    while not is_done():
        children.check()
        if time.monotonic() > end_s:
            raise SemlaError(f"no answer within {CALL_S:.0f} s: {what}")
        time.sleep(0.02)


def growth(memory: Sequence[tuple[int, float]], looks: Sequence[tuple[float, float]]) -> dict[str, object]:
    """How much resident memory grew from the first look to the last, at work or at rest; what else it was is told.

    What is resident at any moment says little: class lists of 3 to some 60 names, mixes of one to eight adapters and
    the time since the last life-cycle change move it by some 5 %.
    """
    grown = [last / first - 1 for first, last in zip(looks[0], looks[-1], strict=True)] if looks else [0.0]
    every = max(1, len(memory) // 100)
    return {
        "memory_at_work_mb": [at_work for at_work, _ in looks],
        "memory_at_rest_mb": [at_rest for _, at_rest in looks],
        "memory_growth": max(grown),
        "memory_max_mb": max((mb for _, mb in memory), default=0.0),
        "memory_mb_by_images": [[sent, round(mb, 1)] for sent, mb in memory[::every]],
    }


def _unaccounted(figures: Mapping[str, Any]) -> int:
    """Images that the node took and neither answered nor dropped for a reason, by its own account."""
    return int(figures["received"] - figures["answered"] - sum(figures["dropped"].values()))


def failures(figures: Mapping[str, Any]) -> list[str]:
    """What the node did not hold, a sentence each; empty where it passed."""
    found = []

    def expect(condition: bool, sentence: str) -> None:
        if not condition:
            found.append(sentence)

    sent, received = figures["sent"], figures["received"]
    answered, dropped, around = figures["answered"], figures["dropped"], figures["sent_around_changes"]
    expect(
        0 <= sent - received <= around,
        f"{counted(sent, 'image')} sent, {around} of them around life-cycle changes, and {received} received",
    )
    missing = _unaccounted(figures)
    expect(
        missing == 0, f"{missing} of {counted(received, 'image')} neither answered nor dropped for a reason: {dropped}"
    )
    unheard = answered - figures["masks"]
    expect(0 <= unheard <= around, f"{counted(answered, 'mask')} published and {figures['masks']} heard")
    for key, what in (
        ("masks_of_broken", "masks of broken images"),
        ("wrong_masks", "masks whose header or size is not their image's"),
        ("unasked_masks", "masks of images never sent, or sent twice"),
        ("changes_unanswered", "parameter changes without an answer"),
        ("changes_misjudged", "parameter changes taken that are wrong, or refused that are right"),
        ("refusals_without_reason", "refusals without a reason"),
        ("transitions_unanswered", "life-cycle transitions without an answer"),
        ("transitions_misjudged", "life-cycle transitions that failed, or were made though impossible"),
        ("reloads_unanswered", "library reloads without an answer"),
        ("reloads_failed", "library reloads that failed"),
        ("tracebacks", "unexpected errors in the log"),
    ):
        expect(figures[key] == 0, f"{figures[key]} {what}")
    failed, broken_images = dropped.get("failed", 0), dropped.get("broken image", 0)
    expect(failed == 0, f"{counted(failed, 'image')} not segmented")
    expect(
        broken_images <= figures["sent_broken"],
        f"{counted(figures['sent_broken'], 'broken image')} sent and {broken_images} found broken",
    )
    unanswered = sent - figures["sent_broken"] - (answered - figures["masks_of_damaged"])
    excused = sent - received + sum(count for reason, count in dropped.items() if reason != "broken image")
    expect(
        unanswered <= excused,
        f"{counted(unanswered, 'valid image')} without a mask, and only {excused} dropped for a reason or lost",
    )
    expect(not figures["crashes"], f"the node crashed or hung: {figures['crash'].partition(chr(10))[0]}")
    expect(figures["exit_status"] == 0, f"the node ended with status {figures['exit_status']}")
    if figures["sent"] >= MEMORY_FRAMES:
        growth = figures["memory_growth"]
        expect(
            growth < MAX_GROWTH, f"memory grew by {growth:.1%} after the warm-up, at most {MAX_GROWTH:.0%} are allowed"
        )
    return found
