"""What is installed on request: the extras of the package, by the modules that each brings."""

from __future__ import annotations

import importlib.util
import sys

from semla_ros.errors import ConfigError, first_line

# As in requirements/, a file for each; a module that two of them bring stands where it is needed first.
MODULES = {
    "robot": "certifi cv2 huggingface_hub markupsafe numpy open_clip PIL psutil rich safetensors shtab torch "
    "torchvision yaml",
    "lab": "av jinja2 lz4 matplotlib peft rosbags scipy",
    "onnx": "onnx onnxruntime onnxscript",
    "openvino": "openvino",
    "ray": "ray",
    "rerun": "rerun",
    "ros": "rclpy builtin_interfaces diagnostic_msgs lifecycle_msgs rcl_interfaces rosgraph_msgs sensor_msgs std_msgs "
    "std_srvs",
    "view": "foxglove",
}


def how_to_install(extra: str) -> str:
    """The command that brings an extra."""
    if extra == "robot":
        return "pip install -r requirements/robot.txt"
    command = f"pip install 'semla_ros[{extra}]'"
    return f"source ROS 2, or on x86_64 {command}" if extra == "ros" else command


def require(*extras: str) -> None:
    """See to it that extras are installed, without importing them.

    Raises:
        ConfigError: Names all that is missing, and the commands that bring it.
    """
    lacking = {extra: [name for name in MODULES[extra].split() if not _is_installed(name)] for extra in extras}
    if parts := [f"{_some(names)}: {how_to_install(extra)}" for extra, names in lacking.items() if names]:
        raise ConfigError(f"this is not installed: {'; '.join(parts)}")


def _some(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _is_installed(module: str) -> bool:
    return sys.modules[module] is not None if module in sys.modules else importlib.util.find_spec(module) is not None


def missing_extra(error: ImportError, *extras: str) -> ConfigError | None:
    """The error to show in place of a failed import; None where the module is of no extra.

    Args:
        error: What the import raised.
        extras: Others that will be needed, too, so that all are named at once.
    """
    try:
        require(*extras)
    except ConfigError as all_of_them:
        return all_of_them
    module = (error.name or "").partition(".")[0]
    for extra, names in MODULES.items():
        if module in names.split():
            return ConfigError(f"{module} cannot be imported ({first_line(error)}): {how_to_install(extra)}")
    return None
