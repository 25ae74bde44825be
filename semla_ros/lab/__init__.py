"""What a robot does not need: training, evaluation, replay, demo, and the world that they use."""
