"""ONNX graphs as files: their initialisers, read without a runtime."""
