"""The hyperparameter search: a run as a trial, the search space, trials driven by Optuna, and their results."""
