"""Signal temporal logic: formulas over traces, how robustly a trace satisfies them, and a text syntax.

O. Maler and D. Nickovic, "Monitoring Temporal Properties of Continuous Signals", FORMATS 2004; the quantitative
semantics of A. Donze and O. Maler, "Robust Satisfaction of Temporal Logic over Real-Valued Signals", FORMATS 2010,
in discrete time.
"""

from __future__ import annotations

from habitus.core.stl.formulas import Affine as Affine
from habitus.core.stl.formulas import And as And
from habitus.core.stl.formulas import Compare as Compare
from habitus.core.stl.formulas import Formula as Formula
from habitus.core.stl.formulas import Implies as Implies
from habitus.core.stl.formulas import Not as Not
from habitus.core.stl.formulas import Or as Or
from habitus.core.stl.formulas import Predicate as Predicate
from habitus.core.stl.parser import parse as parse
from habitus.core.stl.robustness import horizon as horizon
from habitus.core.stl.robustness import robustness as robustness
from habitus.core.stl.robustness import robustness_signal as robustness_signal
from habitus.core.stl.robustness import smoothing_error as smoothing_error
from habitus.core.stl.temporal import Always as Always
from habitus.core.stl.temporal import Eventually as Eventually
from habitus.core.stl.temporal import Until as Until
