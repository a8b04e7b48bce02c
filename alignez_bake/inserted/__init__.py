"""Checkpoints with inserted modules: their code, config entries and added parameters."""
