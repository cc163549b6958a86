"""Judging policies: evaluation and statistics."""
