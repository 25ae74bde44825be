"""Tells what of a bag this project's node answered from what it saw. The only place that decides this.

A bag of answers says so in its own metadata (`BagWriter`). In a recording of everything, the node's topics are those
that its mix names; of recordings that tell no names, those beside its mix or the explanation of its masks, whatever the
node was called; and those below the name that it has by default.
"""

from __future__ import annotations

import re
from itertools import islice

from semla_ros.errors import BagError
from semla_ros.lab.bags.reader import BagReader
from semla_ros.lab.bags.writer import DIAGNOSTICS

TOPICS_KEY = "topics"  # in the mix that the node publishes: its topics, after all remapping
_MIX_KEYS = {"weight", "distance", "generation", "mix_id"}
_MASK_INFO_KEYS = {"vocabulary_version", "generation", "mix_id", "engine"}
_ANSWERS = r"(/[^/]+)?/((mask|confidence|overlay)(/\w+)?|mask_info|labels|label_info|adapter_weights)"
_BY_DEFAULT = re.compile(rf"(.*/perception{_ANSWERS}|/replay/[^/]+(/[^/]+)?/mask)")


def own_topics(bag: BagReader) -> frozenset[str]:
    """The topics of a bag that hold what a node of this project published."""
    if bag.is_own_output:
        return frozenset(bag.topics)
    own = {topic for topic in bag.topics if _BY_DEFAULT.fullmatch(topic)}
    for topic in bag.topics_of_type(DIAGNOSTICS):
        if (named := _named_in(bag, topic)) is not None:
            beside = re.compile(re.escape(topic.rpartition("/")[0]) + _ANSWERS)
            own |= {topic, *named} | {other for other in bag.topics if beside.fullmatch(other)}
    return frozenset(own & bag.topics.keys())


def _named_in(bag: BagReader, topic: str) -> list[str] | None:
    """The topics that a mix names as its node's; empty for the explanation of a mask, None for anything else."""
    try:
        statuses = [
            status for message in islice(bag.messages([topic]), 1) for status in bag.deserialize(message).status
        ]
    except BagError:
        return None
    told = [{item.key: item.value for item in status.values} for status in statuses]
    if not told or not all(values.keys() >= _MIX_KEYS or values.keys() >= _MASK_INFO_KEYS for values in told):
        return None
    return " ".join(values.get(TOPICS_KEY, "") for values in told).split()
