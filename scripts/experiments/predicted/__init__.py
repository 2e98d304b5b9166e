"""Can a regression predict how often a student solves a prompt? See docs/experiments/predicted_pass_rates.md."""
