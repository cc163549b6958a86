"""Objectives for language models: the same functions on arrays of NumPy, JAX and PyTorch.

Pure functions over the Python array-API standard: nothing here imports a library of arrays, so a loss that trains in
JAX here trains in PyTorch inside another trainer. B is responses, R tokens of a response, V the vocabulary.

| module | what it holds |
|---|---|
| `advantages` | how much better a response, or a token, did than expected |
| `losses` | losses of each token, and `covariance` those that pick tokens by their covariance |
| `aggregate` | from losses of tokens to one number |
| `kl` | estimators of divergence from a reference, in the reward and in the loss |
| `shaping` | rewards and masks by length |
| `metrics` | what to watch |
"""

from habitus.language.objectives.advantages import ADVANTAGES
from habitus.language.objectives.aggregate import AGGREGATIONS
from habitus.language.objectives.kl import ESTIMATORS
from habitus.language.objectives.losses import LOSSES

__all__ = ["ADVANTAGES", "AGGREGATIONS", "ESTIMATORS", "LOSSES"]
