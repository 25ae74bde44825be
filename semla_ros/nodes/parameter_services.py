"""The node's parameters in ROS: declared from the table, changed aside and as a whole, and told as they are in use."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.node import Node
from rclpy.parameter import Parameter

from semla_ros.errors import ConfigError
from semla_ros.nodes.aside import Aside
from semla_ros.nodes.parameter_descriptors import descriptor_of
from semla_ros.nodes.rclpy_internals import given_parameters, replace_services
from semla_ros.serving.model_bank import ModelBank
from semla_ros.serving.parameters import QOS_PREFIX, SPECS, Settings, check_ranges, unknown_parameters
from semla_ros.serving.troubles import Troubles


class ParameterServices:
    """Declares the parameters and serves their changes.

    Changes run aside, one after the other: new classes take as long as a fusion.

    Attributes:
        settings: The parameters in use.
        problem: What is wrong with the values given at the start, for which the defaults stand in; empty where nothing.
    """

    def __init__(self, node: Node, aside: Aside, bank: ModelBank, troubles: Troubles) -> None:
        self._node, self._bank, self._troubles = node, bank, troubles
        self._is_syncing = False
        self._declare()
        node.add_on_set_parameters_callback(self._on_set)

        def one_by_one(request: Any, response: Any) -> Any:
            response.results = [self._set([item]) for item in request.parameters]
            return response

        def at_once(request: Any, response: Any) -> Any:
            response.result = self._set(request.parameters)
            return response

        replace_services(
            node, {SetParameters: aside.serving(one_by_one), SetParametersAtomically: aside.serving(at_once)}
        )

    def _declare(self) -> None:
        given = {
            name: value
            for name, value in given_parameters(self._node).items()
            if not name.startswith(QOS_PREFIX) and not self._node.has_parameter(name)
        }
        problems = unknown_parameters(given)
        try:
            self.settings = Settings.make({name: value for name, value in given.items() if name in SPECS})
        except ConfigError as error:
            self.settings = Settings.make({})
            problems.append(str(error))
        self.problem = "; ".join(problems)
        for name, spec in SPECS.items():
            self._node.declare_parameter(name, self.settings.values[name], descriptor_of(spec), ignore_override=True)

    @property
    def cameras(self) -> Sequence[str]:
        """Names of the cameras; `("",)` for the only one."""
        return self.settings.node.cameras or ("",)

    def image_topic(self, camera: str) -> str:
        """The topic to subscribe to for a camera's images.

        As in image_transport, compressed images follow a remapping of `image`; one of `image/compressed` counts more.
        """
        image = f"{camera}/image" if camera else "image"
        if self.settings.node.image_transport == "raw":
            return image
        compressed, resolve = f"{image}/compressed", self._node.resolve_topic_name
        is_remapped = resolve(compressed) != resolve(compressed, only_expand=True)
        return compressed if is_remapped else f"{resolve(image)}/compressed"

    @property
    def hardware_id(self) -> str:
        """Written into each status."""
        return self.settings.node.diagnostics.hardware_id or socket.gethostname()

    def check_all_used(self) -> None:
        """Refuse a QoS setting for a topic that does not exist; to be called once all of them do.

        Raises:
            ConfigError: There is one.
        """
        given = given_parameters(self._node)
        unused = [name for name in given if not self._node.has_parameter(name) and name not in SPECS]
        if unused:
            raise ConfigError(
                f"unknown parameter '{sorted(unused)[0]}': no topic of this node has that setting; "
                "the name of a topic is written in full"
            )

    def show_values_in_use(self) -> None:
        """Let the parameters tell what model and library brought along: vocabulary, retrieval and drift settings."""
        pipeline = self._bank.any
        self.settings = self.settings.with_recommended(pipeline.retrieval, pipeline.drift, pipeline.class_names)
        values = self.settings.values
        self._is_syncing = True
        try:
            changes = [
                Parameter(name, value=values[name])
                for name, spec in SPECS.items()
                if spec.is_live and values[name] != self._node.get_parameter(name).value
            ]
            if changes:
                self._node.set_parameters_atomically(changes)
        finally:
            self._is_syncing = False

    def _set(self, items: Sequence[ParameterMessage]) -> SetParametersResult:
        """Refuse what rclpy would refuse without a name, a reason or a word on /diagnostics; the rest is as usual."""
        try:
            parameters = [Parameter.from_parameter_msg(item) for item in items]
            unknown = unknown_parameters(item.name for item in parameters if not self._node.has_parameter(item.name))
            if unknown:
                return SetParametersResult(successful=False, reason="; ".join(unknown))
            check_ranges({item.name: item.value for item in parameters})
            return self._node.set_parameters_atomically(parameters)
        except Exception as error:
            return self._refused([item.name for item in items], error)

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        """Check the changes together, put them into use, and only then accept them."""
        changes = {item.name: item.value for item in parameters if item.name in SPECS}
        if changes and not self._is_syncing:
            try:
                changed = self.settings.changed(changes)
                self._bank.apply(self.settings, changed)
            except Exception as error:
                return self._refused(changes, error)
            self.settings = changed
        return SetParametersResult(successful=True)

    def _refused(self, names: Sequence[str], error: Exception) -> SetParametersResult:
        reason = self._troubles.refuse(f"change of {', '.join(names)} refused", error)
        return SetParametersResult(successful=False, reason=reason)
