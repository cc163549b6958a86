"""How experience reaches a learner: sources, the loop, checkpoints, logs."""
