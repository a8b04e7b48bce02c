"""The proof that a baked model equals the hooked one, and how close it is."""
