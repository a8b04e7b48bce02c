"""Objectives, persona sentences, prompt forms and shipped queries."""
