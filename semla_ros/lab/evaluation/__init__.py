"""Accuracy: data sets, mIoU, the leave-one-out protocol, bag replay and reports. Needs no ROS."""
