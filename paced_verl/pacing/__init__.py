"""Which prompts, how much each weighs, and when: numpy alone."""
