"""What a run knows and decides, and what a checkpoint keeps: no Ray, no verl."""
