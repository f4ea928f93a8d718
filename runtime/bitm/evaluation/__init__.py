"""How good a model is, what it costs, and what it gets wrong: `bitm eval`.

Needs numpy alone, as the runtime does; plots need matplotlib.
"""

from __future__ import annotations

from bitm.evaluation.evaluate import Evaluation, Settings, compare, evaluate
from bitm.evaluation.result import Result
from bitm.evaluation.statistics import Estimate

__all__ = ["Estimate", "Evaluation", "Result", "Settings", "compare", "evaluate"]
