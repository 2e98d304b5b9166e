"""PACED as an advantage, in verl's own trainers: no teacher servers, no loss of ours."""
