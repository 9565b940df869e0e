"""Training: the arguments, the Trainer, what a run writes."""
