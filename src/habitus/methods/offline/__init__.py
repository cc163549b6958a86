"""Learning from a log of decisions."""
