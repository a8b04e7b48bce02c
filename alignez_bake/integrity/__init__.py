"""Hashes of a result's files and edited tensors: written as it is baked, checked later, and what undoes a bake."""
