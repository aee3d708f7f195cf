"""Small models of many families in folders, made once; their odd numbers are large enough to show."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.small_models import write_small

KINDS = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}


@cache
def folder_of(family: str, kind: str = "policy") -> Path:
    """A folder's model, which nobody changes."""
    folder = Path(mkdtemp(prefix="rlhf_dist-families-")) / family
    write_small(family, folder, kind=KINDS[kind])
    return folder
