"""semla_ros: open-vocabulary segmentation that adapts to the scene by fusing LoRA adapters, as a ROS 2 node.

What `__all__` names is the public interface, and loaded when it is first used; the modules below may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semla_ros.api.library import Library as Library
    from semla_ros.api.pipeline import Pipeline as Pipeline
    from semla_ros.api.pipeline import Result as Result
    from semla_ros.errors import SemlaError as SemlaError

__version__ = "0.1.0"
_HOMES = {"Library": "api.library", "Pipeline": "api.pipeline", "Result": "api.pipeline", "SemlaError": "errors"}
__all__ = ["Library", "Pipeline", "Result", "SemlaError", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
