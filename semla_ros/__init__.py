"""semla_ros: open-vocabulary segmentation that adapts to the scene by fusing LoRA adapters, as a ROS 2 node.

What `__all__` names is the public interface, and loaded when it is first used; the modules below may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semla_ros.api import Library as Library
    from semla_ros.api import Pipeline as Pipeline
    from semla_ros.api import Result as Result
    from semla_ros.errors import SemlaError as SemlaError

__version__ = "0.1.0"
__all__ = ["Library", "Pipeline", "Result", "SemlaError", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module = "errors" if name == "SemlaError" else "api"
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return __all__
