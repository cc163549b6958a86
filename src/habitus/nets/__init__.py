"""Network blocks, distributions, normalisers."""
