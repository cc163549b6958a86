"""One experiment for each paper's headline claim."""
