"""Built-in worlds, written in JAX."""
