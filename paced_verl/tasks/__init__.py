"""Task data in verl's columns, with worked solutions, and the reward functions that score it."""
