"""Hugging Face models as this system uses them."""

from rlhf_dist.models.ends import ends_of, eos_token_ids, write_ends
from rlhf_dist.models.fits import check_models
from rlhf_dist.models.folders import check_folder, resolve
from rlhf_dist.models.heads import LOGITS_BYTES, LogProbHead
from rlhf_dist.models.loading import load_classifier, load_policy, load_value_model, read_config
from rlhf_dist.models.packed import PackedBatch, Positions, pack
from rlhf_dist.models.policy import PolicyModel, at_temperature
from rlhf_dist.models.tokenizers import check_same_tokenizer, load_tokenizer, tokenizer_fingerprint
from rlhf_dist.models.value import ValueModel

__all__ = [
    "LOGITS_BYTES",
    "LogProbHead",
    "PackedBatch",
    "PolicyModel",
    "Positions",
    "ValueModel",
    "at_temperature",
    "check_folder",
    "check_models",
    "check_same_tokenizer",
    "ends_of",
    "eos_token_ids",
    "load_classifier",
    "load_policy",
    "load_tokenizer",
    "load_value_model",
    "pack",
    "read_config",
    "resolve",
    "tokenizer_fingerprint",
    "write_ends",
]
