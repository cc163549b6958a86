"""Worlds: built-in ones that compile, and adapters for everybody else's."""
