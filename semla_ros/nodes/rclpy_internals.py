"""What reaches past what rclpy offers, each with the reason; where rclpy changes, this module follows."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.exceptions import ParameterException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node

from semla_ros.errors import ConfigError
from semla_ros.nodes.rclpy_compat import (
    PublisherEventCallbacks,
    SubscriptionEventCallbacks,
    UnsupportedEventTypeError,
)
from semla_ros.serving.camera_statistics import CameraStatistics
from semla_ros.serving.parameters import QOS_PREFIX

Serve = Callable[[Any, Any], Any]  # (request, response) -> response, or an awaitable of it


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """To initialise ROS and to create a node in.

    Raises:
        ConfigError: ROS refuses what the process was started with; in the words of rcl, less its source files.
    """
    try:
        yield
    except rclpy_implementation.UnknownROSArgsError as error:
        raise ConfigError(f"no arguments of ROS: {error}; known are -r, -p, --params-file, --log-level, …") from error
    except (rclpy_implementation.RCLError, ParameterException) as error:
        said = re.sub(r", at \S+:\d+", "", str(error))
        raise ConfigError(f"{said}; check what follows --ros-args, and the variables ROS_* and RMW_*") from error


@contextlib.contextmanager
def overriding_qos() -> Iterator[None]:
    """To create publishers and subscriptions in whose QoS can be set from outside.

    Raises:
        ConfigError: rclpy knows no such policy, or not of such a type.
    """
    try:
        yield
    except (RuntimeError, ValueError, ParameterException) as error:
        raise ConfigError(f"{QOS_PREFIX}*: {error}") from None


def given_parameters(node: Node) -> dict[str, Any]:
    """Name -> value of every parameter from the command line and files.

    rclpy passes over those that are never declared; here a name that is no parameter must be refused.
    """
    return {name: parameter.value for name, parameter in node._parameter_overrides.items()}


def lifecycle_state(node: LifecycleNodeMixin) -> str:
    """Label of the lifecycle state, which rclpy tells by a service only."""
    return str(node._state_machine.current_state[1])


def destroy(node: LifecycleNodeMixin) -> None:
    """Destroy a node with all that it holds in the middleware.

    The state machine, whose services are not the node's own, would keep the DDS participant with its shared memory
    until it is collected, which at the end of a process may be never.
    """
    node.destroy_node()
    del node._state_machine


def guard_transitions(node: LifecycleNodeMixin, guard: Callable[[Serve], Serve]) -> None:
    """Put a guard around the service that runs transitions: an impossible one raises, which would end the executor."""
    service = node._service_change_state
    service.callback = guard(service.callback)


def replace_services(node: Node, callbacks: Mapping[type, Serve]) -> None:
    """Serve rclpy's own services of some types by other callbacks, which may run beside everything else.

    Its own would end the process at a parameter of no known type, and let the executor wait for a change.
    """
    for service in node.services:
        if service.srv_type in callbacks:
            service.callback = callbacks[service.srv_type]
            service.callback_group = ReentrantCallbackGroup()


def listen(node: Node, statistics: CameraStatistics, kind: type, topic: str, *arguments: Any, **options: Any) -> Any:
    """A subscription to a camera's images whose statistics hear what the middleware tells of the transport.

    Deadline and liveliness are heard where they are asked for alone: the executor looks at each event at every wake-up.

    Args:
        node: Whose subscription it is.
        statistics: Of the camera.
        kind: Type of the messages.
        topic: As for `Node.create_subscription`, like all that follows.
        *arguments: Likewise.
        **options: Likewise.
    """
    asked = f"{QOS_PREFIX}{node.resolve_topic_name(topic)}.subscription."
    given = given_parameters(node)
    events: dict[str, Callable[[Any], None]] = {
        "message_lost": lambda event: statistics.lose(time.monotonic(), event.total_count_change),
    }
    if f"{asked}deadline" in given:
        events["deadline"] = lambda event: statistics.miss_deadline(time.monotonic(), event.total_count_change)
    if f"{asked}liveliness_lease_duration" in given:
        events["liveliness"] = lambda event: statistics.tell_alive(event.alive_count > 0)
    try:
        return node.create_subscription(
            kind, topic, *arguments, event_callbacks=SubscriptionEventCallbacks(**events), **options
        )
    except UnsupportedEventTypeError:  # by this middleware
        return node.create_subscription(kind, topic, *arguments, **options)


def without_events() -> PublisherEventCallbacks:
    """No events on a publisher: the executor would look at each of them at every wake-up.

    A subscriber that asks for more than is offered is told so on its own side.
    """
    return PublisherEventCallbacks(use_default_callbacks=False)
