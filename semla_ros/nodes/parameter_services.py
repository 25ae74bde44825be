"""The node's parameters in ROS: declared from the table, changed aside and as a whole, and told as they are in use."""

from __future__ import annotations

import difflib
import logging
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterType, SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.node import Node
from rclpy.parameter import Parameter

from semla_ros.config import GONE
from semla_ros.errors import ConfigError
from semla_ros.nodes.aside import Aside
from semla_ros.nodes.parameter_descriptors import descriptor_of
from semla_ros.nodes.parameter_sources import files_for_others, named_for, remapped_topics
from semla_ros.nodes.rclpy_internals import given_parameters, replace_services
from semla_ros.serving.model_bank import ModelBank
from semla_ros.serving.parameters import QOS_PREFIX, SPECS, Settings, check_ranges, unknown_parameters
from semla_ros.serving.troubles import Troubles

logger = logging.getLogger(__name__)


class ParameterServices:
    """Declares the parameters and serves their changes.

    Changes run aside, one after the other: new classes take as long as a fusion.

    Args:
        node: Whose parameters they are.
        aside: Where changes run.
        bank: Puts changes into use.
        troubles: Is told of refused ones.
        arguments: The command line that the node was started with.

    Attributes:
        settings: The parameters in use.
        problem: What is wrong with the values given at the start, for which the defaults stand in; empty where nothing.
        ignored: Names that were set for every node and are no parameters of this one.
        passed_over: A sentence for each parameter file that is for other nodes alone.
    """

    def __init__(
        self, node: Node, aside: Aside, bank: ModelBank, troubles: Troubles, arguments: Sequence[str] = ()
    ) -> None:
        self._node, self._bank, self._troubles = node, bank, troubles
        self._is_syncing = False
        self._remapped = remapped_topics(node, arguments)
        self._declare(arguments)
        node.add_on_set_parameters_callback(self._on_set)

        def one_by_one(request: Any, response: Any) -> Any:
            response.results = self._set_each(request.parameters)
            return response

        def at_once(request: Any, response: Any) -> Any:
            response.result = self._set(request.parameters)
            return response

        replace_services(
            node, {SetParameters: aside.serving(one_by_one), SetParametersAtomically: aside.serving(at_once)}
        )

    def _declare(self, arguments: Sequence[str]) -> None:
        given = {
            name: value
            for name, value in given_parameters(self._node).items()
            if not name.startswith(QOS_PREFIX) and not self._node.has_parameter(name)
        }
        unknown = {name for name in given if unknown_parameters([name])}
        ours = named_for(self._node, arguments) | {name for name in unknown if name.partition(".")[0] in GONE}
        self.ignored = sorted(unknown - ours)
        for name in self.ignored:
            logger.warning(
                "'%s', set for every node, is no parameter of this one; %s", name, _nearest(name, SPECS) or "ignored"
            )
        self.passed_over = files_for_others(self._node, arguments)
        for sentence in self.passed_over:
            logger.warning(sentence)
        problems = unknown_parameters(unknown & ours)
        try:
            self.settings = Settings.make({name: value for name, value in given.items() if name in SPECS})
        except ConfigError as error:
            self.settings = Settings.make({})
            problems.append(str(error))
        self.problem = "; ".join(problems)
        for name, spec in SPECS.items():
            value, descriptor = self.settings.values[name], descriptor_of(spec)
            if value == []:  # which would be declared as one of bytes
                self._node.declare_parameter(name, [""], ignore_override=True)
                self._node.set_parameters_atomically([_typed(Parameter(name, value=value))])
                descriptor.type = ParameterType.PARAMETER_STRING_ARRAY
                self._node.set_descriptor(name, descriptor)
            else:
                self._node.declare_parameter(name, value, descriptor, ignore_override=True)

    @property
    def cameras(self) -> Sequence[str]:
        """Names of the cameras; `("",)` for the only one."""
        return tuple(self.settings.node.image_topics)

    def image_topic(self, camera: str) -> str:
        """The topic to subscribe to for a camera's images.

        As in image_transport, compressed images follow a remapping of `image`; one of `image/compressed` counts more.
        """
        image = self.settings.node.image_topics[camera]
        if self.settings.node.image_transport == "raw":
            return image
        compressed = f"{image}/compressed"
        return compressed if self._is_remapped(compressed) else f"{self._node.resolve_topic_name(image)}/compressed"

    def info_topic(self, camera: str) -> str:
        """The topic to subscribe to for a camera's calibration.

        As in image_transport, `camera_info` beside the images; a remapping of the camera's `camera_info` counts more.
        """
        info = f"{camera}/camera_info" if camera else "camera_info"
        if self._is_remapped(info):
            return info
        images = self._node.resolve_topic_name(self.image_topic(camera))
        if self.settings.node.image_transport == "compressed":
            images = images.removesuffix("/compressed")
        return f"{images.rpartition('/')[0]}/camera_info"

    def _is_remapped(self, topic: str) -> bool:
        """Whether a rule says where a topic is, be it where it is without one."""
        name = self._node.resolve_topic_name(topic, only_expand=True)
        return name in self._remapped or bool(name != self._node.resolve_topic_name(topic))

    @property
    def hardware_id(self) -> str:
        """Written into each status."""
        return self.settings.node.diagnostics.hardware_id or socket.gethostname()

    def tell_unused(self) -> None:
        """Tell of QoS settings that fit no topic; to be called once all topics do exist.

        They do no harm, and a dump of the parameters has those of the topics that the node had then.
        """
        known = [name for name in self._node.get_parameters_by_prefix("") if name.startswith(QOS_PREFIX)]
        topics = {name.rpartition(".")[0] for name in known}
        sentences = {}
        for name in sorted(given_parameters(self._node)):
            topic = name.rpartition(".")[0]
            if name.startswith(QOS_PREFIX) and name not in known:
                what, alike = (name, known) if topic in topics else (topic, topics)
                hint = _nearest(what, alike)
                sentences[what] = f"'{what}'" + (f" ({hint})" if hint else "")
        if sentences:
            reason = ConfigError("no topic of this node has it; names of topics are written in full")
            self._troubles.refuse(f"no effect of {', '.join(sentences.values())}", reason)

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

    def _set_each(self, items: Sequence[ParameterMessage]) -> list[SetParametersResult]:
        """Set parameters on their own; at once where they all fit, since some do so in no order, as of `param load`."""
        together = [item for item in items if item.name in SPECS and SPECS[item.name].is_live]
        is_done = len(together) > 1 and self._fit(together) and self._set(together).successful
        return [
            SetParametersResult(successful=True) if is_done and item in together else self._set([item])
            for item in items
        ]

    def _fit(self, items: Sequence[ParameterMessage]) -> bool:
        try:
            self.settings.changed({item.name: Parameter.from_parameter_msg(item).value for item in items})
        except ConfigError:
            return False
        return True

    def _set(self, items: Sequence[ParameterMessage]) -> SetParametersResult:
        """Refuse what rclpy would refuse without a name, a reason or a word on /diagnostics; the rest is as usual."""
        try:
            parameters = [_typed(Parameter.from_parameter_msg(item)) for item in items]
            undeclared = [item.name for item in parameters if not self._node.has_parameter(item.name)]
            if undeclared:
                unknown = unknown_parameters(undeclared) or [f"no topic of this node has '{undeclared[0]}'"]
                return SetParametersResult(successful=False, reason="; ".join(unknown))
            deleted = {item.name for item in parameters if item.type_ == Parameter.Type.NOT_SET}
            parameters = [self._as_if_never_given(item.name) if item.name in deleted else item for item in parameters]
            check_ranges({item.name: item.value for item in parameters})
            result = self._node.set_parameters_atomically(parameters)
            if result.successful and deleted:
                self.settings = Settings.make(self.settings.values, self.settings.explicit - deleted)
            if result.successful and self._bank.pipelines:
                self.show_values_in_use()  # of a list that was emptied, the model's own
            return result
        except Exception as error:
            return self._refused([item.name for item in items], error)

    def _as_if_never_given(self, name: str) -> Parameter:
        """What `ros2 param delete` leaves of a parameter: the library's recommendation, or the default.

        Raises:
            ConfigError: The parameter cannot change while the node runs.
        """
        if name not in SPECS or not SPECS[name].is_live:
            raise ConfigError(f"'{name}' cannot be deleted while the node runs: start the node without it")
        return _typed(Parameter(name, value=self._bank.recommended.get(name, SPECS[name].default)))

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        """Check the changes together, put them into use, and only then accept them."""
        changes = {item.name: item.value for item in parameters if item.name in SPECS}
        if changes and not self._is_syncing:
            try:
                changed = self.settings.changed(changes)
                self._bank.apply(self.settings, changed)
            except Exception as error:
                return self._refused(list(changes), error)
            self.settings = changed
        return SetParametersResult(successful=True)

    def _refused(self, names: Sequence[str], error: Exception) -> SetParametersResult:
        reason = self._troubles.refuse(f"change of {', '.join(names)} refused", error)
        return SetParametersResult(successful=False, reason=reason)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean '{near[0]}'?" if near else ""


def _typed(parameter: Parameter) -> Parameter:
    """The parameter; an empty list with the type that it should have, which neither rclpy nor a tool can tell."""
    value, spec = parameter.value, SPECS.get(parameter.name)
    if spec is None or not isinstance(spec.default, list) or isinstance(value, str) or value is None or len(value):
        return parameter
    return Parameter(parameter.name, Parameter.Type.STRING_ARRAY, [])
