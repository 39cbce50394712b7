"""What tests share: data, networks, runs, processes. No test file imports another."""
