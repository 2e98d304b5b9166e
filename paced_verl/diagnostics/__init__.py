"""What can be known of a run before it is paid for, from what an earlier one has left."""
