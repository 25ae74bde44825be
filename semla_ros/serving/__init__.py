"""Serving cameras, without ROS."""
