"""Training: options, examples, the run, the Trainer and its callbacks, checkpoints."""
