"""One file for each format on disk."""
