"""Fits of edits, one file a method."""
