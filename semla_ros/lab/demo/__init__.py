"""The demo: real ROS 2 nodes on a drive through changing weather, watched, measured and shown."""
