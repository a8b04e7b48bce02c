"""Versions of ONNX's operators that are written."""

from __future__ import annotations

from typing import Final

OLDEST_OPSET: Final = 20
"""Below it GELU is no operator."""
NEWEST_OPSET: Final = 23
"""The newest that torch 2.13 names."""
DEFAULT_OPSET: Final = 23
"""From 23 on attention and RMS norm are operators: half of the nodes, and a tenth less time a token on the CPU.

On CUDA, ONNX Runtime has a kernel for that attention from 1.26 on; before, it runs there on the CPU.
"""
