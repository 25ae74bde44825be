"""What runs the forward pass: torch, ONNX Runtime, TensorRT."""
