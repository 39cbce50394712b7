"""Metrics in context: intervals, comparisons of runs, published figures, and photographs that a network was trained on."""
