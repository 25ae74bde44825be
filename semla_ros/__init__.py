"""semla_ros: open-vocabulary segmentation that adapts to the scene by fusing LoRA adapters, as a ROS 2 node."""

__version__ = "0.1.0"
