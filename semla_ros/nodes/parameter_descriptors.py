"""What `ros2 param describe` and graphical tools show of a parameter."""

from __future__ import annotations

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

from semla_ros.config import Setting


def descriptor_of(setting: Setting) -> ParameterDescriptor:
    """Description, range and whether it may change. A ROS range has closed ends; `Settings` holds the open ones."""
    number_type = type(setting.default)
    descriptor = ParameterDescriptor(
        description=setting.text + (f", {setting.unit}" if setting.unit else ""),
        additional_constraints=setting.allowed,
        read_only=not setting.is_live,
    )
    if setting.range is not None:
        ends = number_type(setting.range.lower), number_type(setting.range.most(number_type))
        if number_type is int:
            descriptor.integer_range = [IntegerRange(from_value=ends[0], to_value=ends[1], step=1)]
        else:
            descriptor.floating_point_range = [FloatingPointRange(from_value=ends[0], to_value=ends[1])]
    return descriptor
