"""OGSRL: guarded safe learning from a log.

A guardian, a kernel density over logged pairs of state and action, says where the log can be trusted.
The log becomes a world that answers with what followed the nearest logged pair; leaving the support
there is penalised, costs, and freezes the episode. Constrained policy optimisation in that world
then keeps both the physical costs and the cost of leaving the support below a limit, so that what it
improves is what the log supports.

R. Yan et al., "Offline Guarded Safe Reinforcement Learning for Medical Treatment Optimization
Strategies", NeurIPS 2025.
"""

from __future__ import annotations

from jaxtyping import PRNGKeyArray

from habitus.core.card import Card
from habitus.core.protocols import require
from habitus.core.spec import Spec
from habitus.data.dataset import Dataset
from habitus.data.density import DensityGuard, pairs_of
from habitus.methods.online.cpo import CPO, CPOState
from habitus.train.nearest_world import NearestWorld, nearest_world, sample_rows

CARD = Card(
    title="Offline Guarded Safe Reinforcement Learning for Medical Treatment Optimization Strategies",
    authors="Yan, Runze and Shen, Xun and Wachi, Akifumi and Gros, Sebastien and Zhao, Anni and Hu, Xiao",
    year=2025,
    venue="Advances in Neural Information Processing Systems",
    arxiv="2505.16242",
    kind="learner",
    entry="OGSRL",
    data=("log", "env"),
    actions=("continuous",),
    paper=True,
)


class OGSRL(CPO):
    """CPO in a guarded world of the log's own transitions: `learn("ogsrl", log)`. Real, bounded actions.

    With `env=` it is CPO there.
    """

    guard: bool = True  # without, the world of the log has no bounds ("MB-CPO")
    outside: float = 0.05  # share of the logged pairs that the guardian flags; paper's code
    bandwidth: float | None = None  # of the density, in scaled units; None for a quarter of the median distance
    penalty: float = 25.0  # of leaving the support, in 2/15 of the median size of a reward; paper's code
    neighbours: int = 1  # successors are drawn from so many nearest pairs; paper
    max_rows: int = 5_000  # of the log that world and guardian look at
    max_kl: float = 0.02
    num_envs: int = 64
    rollout_length: int = 20

    def __check_init__(self) -> None:
        require((0 < self.outside) & (self.outside < 1), f"outside is a share, in (0, 1), but is {self.outside}.")
        require(self.bandwidth is None or self.bandwidth > 0, f"bandwidth must be above 0, but is {self.bandwidth}.")
        require(self.penalty >= 0, f"penalty must be 0 or more, but is {self.penalty}.")
        for name in ("neighbours", "max_rows"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, but is {getattr(self, name)}.")

    def init(self, spec: Spec, key: PRNGKeyArray) -> CPOState:
        spec.require("bounded", type(self).__name__)
        return super().init(spec, key)

    def guardian(self, log: Dataset) -> DensityGuard:
        """What says whether the log supports a pair (appendix G.3)."""
        pairs = pairs_of(log)[sample_rows(log, self.max_rows)]
        return DensityGuard.fit(pairs, float(self.outside), self.bandwidth)

    def world(self, log: Dataset) -> NearestWorld:
        log.spec.require("bounded", type(self).__name__)
        if not self.guard:
            log.spec.require_costs(f"{type(self).__name__} without a guard")
        guardian = self.guardian(log) if self.guard else None
        return nearest_world(
            log, guardian, penalty=float(self.penalty), neighbours=self.neighbours, max_rows=self.max_rows
        )
