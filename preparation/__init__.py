"""From the official label files to CSVs that training reads: parsers, splits, summaries, and a look at every picture."""
