"""Measures of texts: how varied they are, and how near to references."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff"
SELF_BLEU_TEXTS = 200
"""Texts beyond which self-BLEU takes evenly spaced ones: it compares each with all others."""


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams of words, over all texts (Li et al. 2016, arXiv:1510.03055, section 5.2); NaN of none."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each against all others, 0 to 100; lower is more varied (Zhu et al. 2018, arXiv:1802.01886).

    Texts without a word, which are like none and like all, are left out; NaN of fewer than two.
    """
    from sacrebleu.metrics.bleu import BLEU

    texts = [text for text in texts if text.split()]
    chosen = [texts[i] for i in np.linspace(0, len(texts) - 1, min(len(texts), SELF_BLEU_TEXTS)).astype(int)]
    if len(chosen) < 2:
        return math.nan
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, chosen[:i] + chosen[i + 1 :]).score for i, text in enumerate(chosen)]
    return float(np.mean(scores))


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002, by sacrebleu; Post 2018, arXiv:1804.08771)."""
    from sacrebleu.metrics.bleu import BLEU

    return float(BLEU().corpus_score(list(texts), [list(references)]).score)


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
    """Words of any script in lower case; Chinese and Japanese by character. rouge-score's own tokenizer knows a to z only."""

    def tokenize(self, text: str) -> list[str]:
        """The words, without punctuation."""
        return re.findall(rf"[{_CHARACTERS}]|[^\W{_CHARACTERS}]+", text.lower())


def accuracy(texts: Sequence[str], references: Sequence[str]) -> float:
    """Share of texts that equal their reference, apart from case, spaces and a final full stop."""
    pairs = zip(texts, references, strict=True)
    return float(np.mean([_plain(text) == _plain(reference) for text, reference in pairs]))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".").strip()
