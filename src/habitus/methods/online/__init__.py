"""Learning by acting."""
