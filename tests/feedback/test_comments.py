import pytest

from rlhf_dist.config import CommentJudge
from rlhf_dist.data.feedback import Judged
from rlhf_dist.errors import ConfigError
from rlhf_dist.feedback.comments import expected_rating, filled, rate_comments, rating_tokens
from rlhf_dist.tasks.helpdesk import build_tokenizer


def test_the_rating_is_the_expected_value_from_zero_to_one() -> None:
    assert expected_rating([1, 0, 0, 0, 0]) == 0.0
    assert expected_rating([0, 0, 0, 0, 1]) == 1.0
    assert expected_rating([0.2] * 5) == pytest.approx(0.5)
    assert expected_rating([0.1, 0.2, 0.7]) == pytest.approx(0.2 * 0.5 + 0.7)


def test_braces_in_peoples_texts_are_only_braces() -> None:
    parts = {"{comment}": "use {answer}", "{answer}": "A"}
    assert filled("{comment} | {answer} | {x}", parts) == "use {answer} | A | {x}"


def test_ratings_must_be_single_and_different_tokens() -> None:
    tokenizer = build_tokenizer()
    judge = CommentJudge(model="m", prompt="{comment}", ratings=("1", "2", "3"))
    assert len(set(rating_tokens(judge, tokenizer))) == 3
    with pytest.raises(ConfigError, match="'not one' is 7 tokens of m; expected one"):
        rating_tokens(judge.model_copy(update={"ratings": ("1", "not one")}), tokenizer)
    with pytest.raises(ConfigError, match="are the same token"):
        rating_tokens(judge.model_copy(update={"ratings": ("1", "1")}), tokenizer)


def test_what_the_judge_read_is_kept_with_each_row() -> None:
    comment = Judged("comments", "q", ("x",), float("nan"), "s", "here", "ann", comment="fine")
    asked = rate_comments(
        [comment], CommentJudge(model="m", prompt="{prompt}: {comment}", ratings=("1", "2")), build_tokenizer()
    )
    (row,) = asked.read([[0.25, 0.75]]).rows()
    assert row["label"] == 0.75
    assert row["rating_probabilities"] == [0.25, 0.75]
    assert (row["comment"], row["annotator"]) == ("fine", "ann")
