"""Using a trained network: scores, explanations, tables, the page."""
