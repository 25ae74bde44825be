"""A launch_testing test: perception.launch.py starts a node that answers, and Ctrl-C ends it cleanly.

Run by test_launch_for_real.py, or by hand: `launch_test test/launch/perception_launch_check.py`.
"""

from __future__ import annotations

import time
import unittest
from pathlib import Path
from typing import Any

import launch_testing.actions
import launch_testing.asserts
import rclpy
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters

from launch import LaunchDescription

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
ARGUMENTS = {"namespace": "car", "device": "cpu", "cameras": "front,left", "image_transport": "compressed"}
TIMEOUT_S = 120.0  # a machine that is busy takes long to import and load


def generate_test_description() -> LaunchDescription:
    source = PythonLaunchDescriptionSource(str(LAUNCH / "perception.launch.py"))
    include = IncludeLaunchDescription(source, launch_arguments=ARGUMENTS.items())
    return LaunchDescription([include, launch_testing.actions.ReadyToTest()])


class TestNode(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        rclpy.init()
        cls.node = rclpy.create_node("launch_check")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.node.destroy_node()
        rclpy.shutdown()

    def _call(self, service_type: Any, name: str, request: Any) -> Any:
        client = self.node.create_client(service_type, f"/car/perception/{name}")
        assert client.wait_for_service(TIMEOUT_S), f"no service {name}"
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self.node, future, timeout_sec=TIMEOUT_S)
        return future.result()

    def test_it_becomes_active_by_itself(self) -> None:
        end_s, state = time.monotonic() + TIMEOUT_S, ""
        while state != "active" and time.monotonic() < end_s:
            state = self._call(GetState, "get_state", GetState.Request()).current_state.label
            time.sleep(0.2)
        assert state == "active"
        subscribed = self.node.get_subscriber_names_and_types_by_node("perception", "/car")
        images = [topic for topic, types in subscribed if types == ["sensor_msgs/msg/CompressedImage"]]
        assert images == ["/car/front/image/compressed", "/car/left/image/compressed"]

    def test_arguments_reach_the_node_as_parameters(self) -> None:
        names = ["device", "image_transport", "cameras", "model"]
        values = self._call(GetParameters, "get_parameters", GetParameters.Request(names=names)).values
        assert values[0].string_value == "cpu"
        assert values[1].string_value == "compressed"
        assert list(values[2].string_array_value) == ["front", "left"]
        assert values[3].string_value == "semla-tiny"


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    def test_every_process_ended_well(self, proc_info: Any) -> None:
        launch_testing.asserts.assertExitCodes(proc_info)
