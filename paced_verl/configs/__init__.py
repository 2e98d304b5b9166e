"""Hydra configuration groups: ``+paced=NAME`` (what to run) and ``+machine=NAME`` (where)."""
