"""What a run did, from the files it left: metrics, pass-rate tables, a picture."""
