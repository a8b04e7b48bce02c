"""Tiny models and pairs of recordings, for methods that are fitted to a model and not to planted statistics."""

from tests.capture.conftest import pairs, tiny_lm64

__all__ = ["pairs", "tiny_lm64"]
