"""What figures mean: intervals, comparisons, published figures, and which photographs a network has seen."""
