"""Measures how much success a token is worth: forces it on the student's servers, and lets the student finish."""
