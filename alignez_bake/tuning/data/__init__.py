"""Texts that an edit should leave alone."""
