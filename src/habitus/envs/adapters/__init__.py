"""One file for each family of foreign environments."""
