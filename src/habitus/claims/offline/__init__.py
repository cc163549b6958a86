"""Claims of this family."""
