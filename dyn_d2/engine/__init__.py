"""Training and evaluation: set-up, trainer, checks before the first step, and the two-stage procedure."""
