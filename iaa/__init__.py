"""Image aesthetics assessment around the networks of `models`: a room for each job, imports only downwards."""
