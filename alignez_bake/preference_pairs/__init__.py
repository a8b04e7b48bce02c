"""From queries to preference pairs that the base model writes itself."""
