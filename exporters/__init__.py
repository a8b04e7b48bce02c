"""Artefacts that a lowering can be written as: one file each."""
