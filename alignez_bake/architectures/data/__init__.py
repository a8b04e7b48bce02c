"""One JSON file for each architecture; see `alignez_bake.architectures.architecture` for the fields."""
