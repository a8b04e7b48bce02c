"""Weights from base to result as a stream of blocks: read and computed side by side, hashed and written in order."""
