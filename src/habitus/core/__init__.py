"""The contracts: experience, spaces, the four protocols, errors. Imports nothing else of habitus."""
