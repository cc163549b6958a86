"""Policies that draw whole chunks of actions from a generative model."""
