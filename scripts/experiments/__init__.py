"""Studies whose tables and pages are in ``docs/experiments/``."""
