import pytest

from rlhf_dist.errors import ConfigError
from rlhf_dist.scoring.functions import load_gold_judge
from rlhf_dist.tasks.helpdesk import gold_score


def test_a_gold_judge_is_imported_by_path_or_refused_by_name() -> None:
    assert load_gold_judge(None) is None
    assert load_gold_judge("rlhf_dist.tasks.helpdesk:gold_score") is gold_score
    with pytest.raises(ConfigError, match=r"gold_judge is 'rlhf_dist.tasks.helpdesk:nothing'"):
        load_gold_judge("rlhf_dist.tasks.helpdesk:nothing")
