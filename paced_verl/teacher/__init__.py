"""Who teaches, what it sees, and how it is asked."""
