"""Scores of photographs: where they come from, what is written of them, and why they are what they are."""
