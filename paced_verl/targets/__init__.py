"""Stored teacher responses, and who writes them ahead of a run."""
