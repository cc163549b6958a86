"""habitus: published ways of learning, guarding and judging decision policies, as parts of one system.

```python
run = habitus.learn("prdc", data="pendulum-medium", steps=20_000, seeds=4)
habitus.evaluate(run)
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives. They are imported when first used: JAX takes half a second.
_HOMES = {
    "Card": "core.card",
    "Client": "serve.client",
    "Dataset": "data.dataset",
    "DatasetSource": "data.source",
    "Deployed": "core.policy",
    "Diverged": "core.errors",
    "Env": "core.protocols",
    "HabitusError": "core.errors",
    "HostEnv": "core.protocols",
    "Learner": "core.protocols",
    "Policy": "core.protocols",
    "PolicyServer": "serve.server",
    "Prioritised": "data.prioritised",
    "Replay": "train.sources",
    "Rollouts": "train.rollouts",
    "Run": "train.run",
    "Source": "core.protocols",
    "Spec": "core.spec",
    "Stages": "train.recipe",
    "Trajectory": "core.experience",
    "Transition": "core.experience",
    "cards": "core.card",
    "evaluate": "measure.evaluate",
    "evaluate_offline": "measure.ope",
    "export": "serve.export",
    "inspect": "data.inspect",
    "learn": "train.loop",
    "load": "train.standard",
    "make": "envs.registry",
    "make_offline": "train.standard",
    "method": "train.setup:entry",
    "normalised_score": "data.scores",
    "record_log": "train.logs",
    "save": "data.io",
    "write_report": "report.page",
}

if TYPE_CHECKING:
    from habitus.core.card import Card as Card
    from habitus.core.card import cards as cards
    from habitus.core.errors import Diverged as Diverged
    from habitus.core.errors import HabitusError as HabitusError
    from habitus.core.experience import Trajectory as Trajectory
    from habitus.core.experience import Transition as Transition
    from habitus.core.policy import Deployed as Deployed
    from habitus.core.protocols import Env as Env
    from habitus.core.protocols import HostEnv as HostEnv
    from habitus.core.protocols import Learner as Learner
    from habitus.core.protocols import Policy as Policy
    from habitus.core.protocols import Source as Source
    from habitus.core.spec import Spec as Spec
    from habitus.data.dataset import Dataset as Dataset
    from habitus.data.inspect import inspect as inspect
    from habitus.data.io import save as save
    from habitus.data.prioritised import Prioritised as Prioritised
    from habitus.data.scores import normalised_score as normalised_score
    from habitus.data.source import DatasetSource as DatasetSource
    from habitus.envs.registry import make as make
    from habitus.measure.evaluate import evaluate as evaluate
    from habitus.measure.ope import evaluate_offline as evaluate_offline
    from habitus.report.page import write_report as write_report
    from habitus.serve.client import Client as Client
    from habitus.serve.export import export as export
    from habitus.serve.server import PolicyServer as PolicyServer
    from habitus.train.logs import record_log as record_log
    from habitus.train.loop import learn as learn
    from habitus.train.recipe import Stages as Stages
    from habitus.train.rollouts import Rollouts as Rollouts
    from habitus.train.run import Run as Run
    from habitus.train.setup import entry as entry
    from habitus.train.sources import Replay as Replay
    from habitus.train.standard import load as load
    from habitus.train.standard import make_offline as make_offline

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"habitus has no {name!r}; it has {', '.join(sorted(_HOMES))}.")
    home, _, inner = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(f"habitus.{home}"), inner or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
