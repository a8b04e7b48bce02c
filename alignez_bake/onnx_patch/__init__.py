"""Edits into a graph that is there already: folded into its initialisers, or as nodes. No torch, no transformers."""
