"""A causal model with its cache as one ONNX graph."""
