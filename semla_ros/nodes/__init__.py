"""The only code that imports ROS."""
