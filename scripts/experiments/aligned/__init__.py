"""Gradient alignment of the quickstart's pair and of a second task, and how right the measurement is."""
