"""From edits to changed tensors: decide, fold, and the hooked reference."""
