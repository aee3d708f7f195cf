"""Measures of texts: how varied they are, and how near to references."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import regex

_UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}ーｰ\p{Bopomofo}\p{Yi}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
    r"\p{Javanese}\p{Balinese}\p{Tai_Tham}\p{Tai_Viet}\p{Tai_Le}\p{New_Tai_Lue}"
)
"""Scripts without spaces between words, which are therefore taken by character, each with its marks."""
_CHARACTER = regex.compile(rf"[{_UNSPACED}]\p{{M}}*")
_WORD = regex.compile(rf"{_CHARACTER.pattern}|[\w--[{_UNSPACED}]]+", regex.VERSION1)
SELF_BLEU_TEXTS = 200
"""Texts beyond which self-BLEU takes evenly spaced ones: it compares each with all others."""


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of words, over all texts (Li et al. 2016, arXiv:1510.03055, section 5.2); NaN of none."""
    spaced = [_spaced(text).split() for text in texts]
    grams = [tuple(words[i : i + n]) for words in spaced for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each against all others, 0 to 100; lower is more varied (Zhu et al. 2018, arXiv:1802.01886).

    Texts without a word, which are like none and like all, are left out; NaN of fewer than two.
    """
    from sacrebleu.metrics.bleu import BLEU

    texts = [_spaced(text) for text in texts if text.split()]
    chosen = [texts[i] for i in np.linspace(0, len(texts) - 1, min(len(texts), SELF_BLEU_TEXTS)).astype(int)]
    if len(chosen) < 2:
        return math.nan
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, chosen[:i] + chosen[i + 1 :]).score for i, text in enumerate(chosen)]
    return float(np.mean(scores))


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002, by sacrebleu; Post 2018, arXiv:1804.08771).

    Where no text has four words, it counts the n-grams that there are, else the same short texts would have 0.
    """
    from sacrebleu.metrics.bleu import BLEU

    spaced = [[_spaced(text) for text in each] for each in (texts, references)]
    return float(BLEU(effective_order=True).corpus_score(spaced[0], [spaced[1]]).score)


def chrf(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF, 0 to 100 (Popovic 2015, by sacrebleu)."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().corpus_score(list(texts), [list(references)]).score)


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1 (Lin 2004, by rouge-score)."""
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge1": "rouge-1", "rouge2": "rouge-2", "rougeL": "rouge-l"}
    scorer = RougeScorer([*names], tokenizer=_Words())
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {ours: float(np.mean([score[theirs].fmeasure for score in scores])) for theirs, ours in names.items()}


class _Words:
    """Words of any script in lower case, for rouge-score, whose own tokenizer knows a to z only."""

    def tokenize(self, text: str) -> list[str]:
        """The words, without punctuation."""
        return [*_WORD.findall(text.lower())]


def _spaced(text: str) -> str:
    """With spaces between what are words to us."""
    return str(_CHARACTER.sub(r" \g<0> ", text))


def accuracy(texts: Sequence[str], references: Sequence[str]) -> float:
    """Share of texts that equal their reference, apart from case, spaces and a final full stop."""
    pairs = zip(texts, references, strict=True)
    return float(np.mean([_plain(text) == _plain(reference) for text, reference in pairs]))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").strip()
