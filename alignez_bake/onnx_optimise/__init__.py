"""Graphs with fused operators, and graphs with weights of 4 or 8 bits."""
