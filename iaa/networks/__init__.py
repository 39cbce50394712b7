"""Trained networks: from a weights file and what it is for to a network that scores, and where such a network looks."""
