"""Logs of decisions: data sets, formats, validation, and how the standard sets are made."""
