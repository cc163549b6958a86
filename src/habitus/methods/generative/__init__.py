"""Policies that are drawn from generative models: diffusion, flows."""
