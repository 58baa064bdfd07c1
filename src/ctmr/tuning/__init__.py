"""Hyperparameter tuning: an Optuna study that any number of workers share and any of them may leave."""
