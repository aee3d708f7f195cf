"""Embedded tasks beside the help desk: summarisation, translation, style transfer, text classification, arithmetic."""

from rlhf_dist.tasks.scenarios.arithmetic import ARITHMETIC
from rlhf_dist.tasks.scenarios.classification import CLASSIFICATION
from rlhf_dist.tasks.scenarios.scenario import Scenario
from rlhf_dist.tasks.scenarios.style import STYLE
from rlhf_dist.tasks.scenarios.summarisation import SUMMARISATION
from rlhf_dist.tasks.scenarios.translation import TRANSLATION

SCENARIOS = {scenario.name: scenario for scenario in (SUMMARISATION, TRANSLATION, STYLE, CLASSIFICATION, ARITHMETIC)}

summarisation = SUMMARISATION.judge
translation = TRANSLATION.judge
style = STYLE.judge
classification = CLASSIFICATION.judge
arithmetic = ARITHMETIC.judge
"""Gold judges, by the task's name: `rlhf_dist.tasks.scenarios:NAME`."""

__all__ = ["SCENARIOS", "Scenario"]
