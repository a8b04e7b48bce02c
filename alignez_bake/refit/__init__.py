"""Gated edits made into ones that weights can carry: least squares on what the running model does."""
