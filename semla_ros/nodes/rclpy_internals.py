"""What reaches past what rclpy offers, each with the reason; where rclpy changes, this module follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node

from semla_ros.nodes.rclpy_compat import PublisherEventCallbacks

Serve = Callable[[Any, Any], Any]  # (request, response) -> response, or an awaitable of it


def given_parameters(node: Node) -> dict[str, Any]:
    """Name -> value of every parameter from the command line and files.

    rclpy passes over those that are never declared; here a name that is no parameter must be refused.
    """
    return {name: parameter.value for name, parameter in node._parameter_overrides.items()}


def lifecycle_state(node: LifecycleNodeMixin) -> str:
    """Label of the lifecycle state, which rclpy tells by a service only."""
    return str(node._state_machine.current_state[1])


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


def without_events() -> PublisherEventCallbacks:
    """No events on a publisher: the executor would look at each of them at every wake-up.

    A subscriber that asks for more than is offered is told so on its own side.
    """
    return PublisherEventCallbacks(use_default_callbacks=False)
