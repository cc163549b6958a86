"""Claims of methods that draw whole chunks of actions."""
