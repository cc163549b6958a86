"""Claims of the generative methods."""
