"""Endurance: thousands of mixed and broken images through the real node, while its parameters and library change.

The node runs in a process of its own, over DDS. `qos_overrides` make its input reliable and deep, so that every image
sent is also taken, and the account has to come out to the last image: received = answered + dropped for a reason.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.soak_client import IN_FLIGHT, SoakClient
from bench.soak_images import FAULTS, broken, make_pictures
from bench.soak_library import ChangingLibrary
from semla_ros.lab.isolation import free_domain, isolated_environment
from semla_ros.lab.processes import Child, Children
from semla_ros.lab.world.caption import SYNONYMS
from semla_ros.resources import shipped_library

BROKEN_SHARE = 0.1
CHANGE_EVERY_S = 1.0
RELOAD_EVERY_S = 10.0
LISTENERS_EVERY_S = 15.0  # subscribers of overlay, confidence and compressed mask come and go
BROKEN_TURN_S = 0.02
BURST_EVERY, BURST = 50, 4  # so many images at once, so that some are overtaken
PICTURES = 120
START_S, SETTLE_S = 180.0, 60.0

WARM_UP = 0.2  # part of the run after which memory is looked at: every size, class list and adapter has come by
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
    ({"drift_threshold": 0.05, "release_threshold": 0.01}, True),
    ({"classes": ["road", "road"]}, False),
    ({"retrieval_rate_hz": 5.0, "min_dwell_s": 0.1}, True),
    ({"top_k": 8, "temperature": 0.02}, True),
    ({"model": "catseg-l"}, False),
    ({"classes": ["road", "sidewalk", "building", "car", "person", "tree", "sky", "pole", "sign"]}, True),
    ({"topk": 3}, False),
    ({"top_k": 3, "release_threshold": 5.0}, False),
    ({"distance": "cosine"}, True),
    ({"classes": MANY_CLASSES}, True),
    ({"classes": ["road", "flying saucer"]}, False),  # no words of the shipped model
    ({"distance": "euclidean"}, True),
    ({"temperature": "hot"}, False),
)


def measure(frames: int = 10000, model: str = "semla-tiny", library: str = "", seed: int = 0) -> dict[str, object]:
    """Run the soak; returns counts, memory, `failures` (one sentence each) and `passed`."""
    rng = np.random.default_rng(seed)
    pictures = make_pictures(PICTURES, seed)
    faulty = [broken(pictures[index % len(pictures)], fault) for index, fault in enumerate([*FAULTS] * 3)]
    environment = isolated_environment(free_domain())
    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        changing = ChangingLibrary(Path(library) if library else shipped_library(model), Path(folder) / "library")
        log = Path(folder) / "perception.log"
        child = children.start("perception node", _command(model, changing.folder), environment, log)
        client = SoakClient()
        try:
            client.wait_until_active(START_S, children.check)
            client.begin(pictures[0], START_S)
            start_s = time.monotonic()
            memory = _drive(client, child, children, changing, frames, pictures, faulty, rng)
            client.settle(SETTLE_S)
            elapsed_s = time.monotonic() - start_s
            figures = client.account() | {"elapsed_s": elapsed_s, "reloads": changing.reloads, **_growth(memory)}
            figures["threads"] = psutil.Process(child.pid).num_threads()
        finally:
            client.close()
        figures["exit_status"] = child.stop(grace_s=30.0)
        output = log.read_text(encoding="utf-8", errors="replace")
        figures["tracebacks"] = output.count("Traceback (most recent call last)")
    found = failures(figures)
    return {**figures, "unaccounted": _unaccounted(figures), "failures": found, "passed": not found}


def _command(model: str, library: Path) -> list[str]:
    parameters = {
        "model": model,
        "library": library,
        "device": "cpu",
        "qos_overrides./image.subscription.reliability": "reliable",
        "qos_overrides./image.subscription.depth": 100,
        "qos_overrides./perception/mask.publisher.depth": 100,
    }
    given = [item for key, value in parameters.items() for item in ("-p", f"{key}:={value}")]
    return [sys.executable, "-m", "semla_ros.nodes.perception_node", "--ros-args", *given]


def _drive(
    client: SoakClient,
    child: Child,
    children: Children,
    changing: ChangingLibrary,
    frames: int,
    pictures: Sequence[Any],
    faulty: Sequence[Any],
    rng: np.random.Generator,
) -> list[tuple[int, float]]:
    """Send all images; returns the node's resident memory once per second as (images sent, MB)."""
    process = psutil.Process(child.pid)
    memory: list[tuple[int, float]] = []
    change_s = listeners_s = time.monotonic()
    reload_s = change_s - RELOAD_EVERY_S / 2
    changes = 0
    for index in range(frames):
        is_broken, is_burst = rng.random() < BROKEN_SHARE, index % BURST_EVERY < BURST
        # A drive: its pictures come in order, each a few times, as fast as the node takes them.
        picture = faulty[rng.integers(len(faulty))] if is_broken else pictures[index // 4 % len(pictures)]
        if not is_burst:
            client.wait_for_turn(in_flight=1 if is_broken else IN_FLIGHT)
        client.send(picture)
        if is_broken and not is_burst:
            time.sleep(BROKEN_TURN_S)  # nothing comes back for it, and the next one must not overtake it
        now_s = time.monotonic()
        if now_s - change_s >= CHANGE_EVERY_S:
            change_s = now_s
            children.check()
            client.change(*CHANGES[changes % len(CHANGES)])
            changes += 1
            memory.append((index, process.memory_info().rss / 1e6))
        if now_s - reload_s >= RELOAD_EVERY_S:
            reload_s = now_s
            changing.change()
            client.reload()
        if now_s - listeners_s >= LISTENERS_EVERY_S:
            listeners_s = now_s
            client.toggle_listeners()
    memory.append((frames, process.memory_info().rss / 1e6))
    return memory


def _growth(memory: Sequence[tuple[int, float]]) -> dict[str, object]:
    """Resident memory at the end of the run against that after the warm-up, medians over a tenth of the run each."""
    frames = memory[-1][0]

    def median(start: float, end: float) -> float:
        inside = [mb for sent, mb in memory if start * frames <= sent <= end * frames]
        return statistics.median(inside or [memory[-1][1]])

    first, last = median(WARM_UP, WARM_UP + 0.1), median(0.9, 1.0)
    every = max(1, len(memory) // 100)
    return {
        "memory_after_warm_up_mb": first,
        "memory_at_end_mb": last,
        "memory_max_mb": max(mb for _, mb in memory),
        "memory_growth": last / first - 1,
        "memory_mb_by_images": [[sent, round(mb, 1)] for sent, mb in memory[::every]],
    }


def _unaccounted(figures: Mapping[str, Any]) -> int:
    """Images that were sent and are neither answered nor dropped for a reason, by the node's own account."""
    return int(figures["sent"] - figures["answered"] - sum(figures["dropped"].values()))


def failures(figures: Mapping[str, Any]) -> list[str]:
    """What the node did not hold, a sentence each; empty where it passed."""
    found = []

    def expect(condition: bool, sentence: str) -> None:
        if not condition:
            found.append(sentence)

    sent, received = figures["sent"], figures["received"]
    answered, dropped = figures["answered"], figures["dropped"]
    expect(received == sent, f"{sent} images were sent and {received} received")
    missing = _unaccounted(figures)
    expect(missing == 0, f"{missing} of {sent} images are neither answered nor dropped for a reason: {dropped}")
    expect(figures["masks"] == answered, f"{answered} masks were published and {figures['masks']} heard")
    for key, what in (
        ("masks_of_broken", "masks of broken images"),
        ("wrong_masks", "masks whose header or size is not their image's"),
        ("unasked_masks", "masks of images never sent, or sent twice"),
        ("changes_unanswered", "parameter changes without an answer"),
        ("changes_misjudged", "parameter changes taken that are wrong, or refused that are right"),
        ("refusals_without_reason", "refusals without a reason"),
        ("reloads_unanswered", "library reloads without an answer"),
        ("reloads_failed", "library reloads that failed"),
        ("tracebacks", "unexpected errors in the log"),
    ):
        expect(figures[key] == 0, f"{figures[key]} {what}")
    failed, broken_images = dropped.get("failed", 0), dropped.get("broken image", 0)
    expect(failed == 0, f"{failed} images could not be segmented")
    expect(
        broken_images <= figures["sent_broken"],
        f"{figures['sent_broken']} broken images were sent and {broken_images} found broken",
    )
    unanswered = figures["sent"] - figures["sent_broken"] - answered
    excused = sum(count for reason, count in dropped.items() if reason != "broken image")
    expect(
        unanswered <= excused, f"{unanswered} valid images have no mask, and only {excused} were dropped for a reason"
    )
    expect(figures["exit_status"] == 0, f"the node ended with status {figures['exit_status']}")
    if figures["sent"] >= MEMORY_FRAMES:
        growth = figures["memory_growth"]
        expect(
            growth < MAX_GROWTH, f"memory grew by {growth:.1%} after the warm-up, at most {MAX_GROWTH:.0%} are allowed"
        )
    return found
