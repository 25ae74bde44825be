#!/usr/bin/env bash
# Sources ROS 2 and the workspace, then runs what is asked for: the node by default, or any ros2 or semla command.
set -e
for ros in /opt/ros/current /opt/ros/jazzy; do
  if [ -f "$ros/setup.bash" ]; then . "$ros/setup.bash"; break; fi
done
. /opt/semla/workspace/install/setup.bash
export PATH="/opt/semla/workspace/install/semla_ros/lib/semla_ros:$PATH"
# For images larger than the default shared-memory segment; what is said of DDS otherwise stays, as with launch.
profile=/opt/semla/workspace/install/semla_ros/share/semla_ros/config/fastdds.xml
if [ -z "$FASTRTPS_DEFAULT_PROFILES_FILE$FASTDDS_DEFAULT_PROFILES_FILE$FASTDDS_BUILTIN_TRANSPORTS" ] \
  && [ ! -f DEFAULT_FASTRTPS_PROFILES.xml ] && [ ! -f DEFAULT_FASTDDS_PROFILES.xml ]; then
  export FASTRTPS_DEFAULT_PROFILES_FILE="$profile" FASTDDS_DEFAULT_PROFILES_FILE="$profile"
fi
exec "$@"
