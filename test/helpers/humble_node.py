"""Runs the costless node on an rclpy that has what Humble's has: for what differs, this stands in for it.

Taken from the sources of rclpy 3.3 (Humble) beside 7.1 (Jazzy). What is taken away is what Humble lacks and rclpy does
not need itself; a name that is gone here fails as it would there.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

MODULES = (
    "event_handler", "parameter_client", "parameter_event_handler", "service_introspection", "type_description_service",
    "type_hash", "logging_service", "clock_type", "destroyable",
)  # fmt: skip
NAMES = {
    "client.Client": ("configure_introspection", "service_name"),
    "node.Node": (
        *("add_post_set_parameters_callback", "add_pre_set_parameters_callback", "count_clients", "count_services"),
        *("get_fully_qualified_node_names", "wait_for_node"),
    ),
    "qos": ("qos_profile_best_available", "DeadlineBestAvailable"),
    "service.Service": ("configure_introspection", "service_name"),
    "subscription.Subscription": ("get_publisher_count",),
}
ARGUMENTS = {
    "event_handler.PublisherEventCallbacks.__init__": ("incompatible_type", "matched"),
    "event_handler.SubscriptionEventCallbacks.__init__": ("incompatible_type", "matched"),
    "node.Node.__init__": ("enable_logger_service",),
    "node.Node.create_timer": ("autostart",),
    "client.Client.call": ("timeout_sec",),
}


def become_humble() -> None:
    """Take away what Humble's rclpy lacks; before anything of the node is imported."""
    import rclpy.node
    import rclpy.qos

    for path, arguments in ARGUMENTS.items():
        owner, _, name = path.rpartition(".")
        setattr(found(owner), name, without(arguments, getattr(found(owner), name)))
    for path, names in NAMES.items():
        for name in names:
            if hasattr(found(path), name):
                delattr(found(path), name)
    events = found("event_handler")
    old = types.ModuleType("rclpy.qos_event")
    old.__dict__.update({name: item for name, item in vars(events).items() if not name.startswith("__")})
    for name in MODULES:
        sys.modules[f"rclpy.{name}"] = None  # type: ignore[assignment]
        if hasattr(rclpy, name):
            delattr(rclpy, name)
    sys.modules["rclpy.qos_event"] = old


def found(path: str) -> Any:
    """A module of rclpy, or a class in one."""
    module, _, name = path.partition(".")
    item = sys.modules[f"rclpy.{module}"]
    return getattr(item, name) if name else item


def without(arguments: tuple[str, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing arguments that it does not have in Humble."""
    assert set(arguments) <= {*inspect.signature(function).parameters, "enable_logger_service", "autostart"}

    def call(*given: Any, **named: Any) -> Any:
        if unknown := [name for name in arguments if name in named and called_from_outside()]:
            raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument '{unknown[0]}'")
        return function(*given, **named)

    return call


def called_from_outside() -> bool:
    """Whether the caller of `call` is no module of rclpy."""
    return not str(sys._getframe(2).f_globals["__name__"]).startswith("rclpy")


if __name__ == "__main__":
    become_humble()
    import costless_node

    sys.exit(costless_node.main())
