#!/usr/bin/env bash
# Sources ROS 2 and the workspace, then runs what is asked for: the node by default, or any ros2 or semla command.
set -e
for ros in /opt/ros/current /opt/ros/jazzy; do
  if [ -f "$ros/setup.bash" ]; then . "$ros/setup.bash"; break; fi
done
. /opt/semla/workspace/install/setup.bash
export PATH="/opt/semla/workspace/install/semla_ros/lib/semla_ros:$PATH"
# Images larger than the default shared-memory segment; a profile of your own goes first.
profile=/opt/semla/workspace/install/semla_ros/share/semla_ros/config/fastdds.xml
export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$profile}"
export FASTDDS_DEFAULT_PROFILES_FILE="${FASTDDS_DEFAULT_PROFILES_FILE:-$profile}"
exec "$@"
