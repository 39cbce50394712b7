"""From the official label files and pictures to arrays: parsers, splits, checks, decoding, the cache."""
