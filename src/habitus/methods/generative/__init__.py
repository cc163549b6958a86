"""Generative methods: policies that draw whole plans."""
