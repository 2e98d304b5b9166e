"""Pass rates measured before the run, and when they are drawn: the same seeds, a quarter of the rollouts."""
