"""Texts that the project ships."""
