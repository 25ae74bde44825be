"""Why no image comes: what the graph shows of a camera's topic, as a hint for /diagnostics."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible

_TYPES = {"raw": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}


def why_silent(node: Node, topic: str, transport: str) -> str:
    """What to do about a camera topic on which nothing arrives.

    Args:
        node: Subscribed to the topic.
        topic: Full name.
        transport: "raw" or "compressed".
    """
    publishers = node.get_publishers_info_by_topic(topic)
    if not publishers:
        other = "raw" if transport == "compressed" else "compressed"
        other_topic = topic.removesuffix("/compressed") if other == "raw" else f"{topic}/compressed"
        if node.count_publishers(other_topic):
            return f"images are published on {other_topic}: set image_transport to '{other}'"
        return "nobody publishes there: check that the camera runs, its topic name and ROS_DOMAIN_ID"
    kinds = sorted({publisher.topic_type for publisher in publishers})
    if _TYPES[transport] not in kinds:
        return f"what is published there is {', '.join(kinds)}, not {_TYPES[transport]}: remap 'image' to another topic"
    own = [item for item in node.get_subscriptions_info_by_topic(topic) if item.node_name == node.get_name()]
    for publisher in publishers:
        for subscription in own:
            compatibility, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
            if compatibility == QoSCompatibility.ERROR:
                return (
                    f"the camera's QoS does not fit ({reason.strip('; ')}): change qos_overrides, or the camera's QoS"
                )
    return "a camera is connected, but sends nothing: check the camera"
