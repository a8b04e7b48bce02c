"""Hugging Face Hub: bases and edits from there, results to there."""
