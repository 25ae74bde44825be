"""Fixed components as TensorRT engines."""
