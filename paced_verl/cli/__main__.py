"""``python -m paced_verl.cli``: the command where it is not on the path."""

from paced_verl.cli import app

app()
