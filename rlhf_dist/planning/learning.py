"""What fills the memory of one learner rank, phase by phase, whatever the stage."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_dist.config import Learner
from rlhf_dist.planning.activations import BYTES, head_bytes, looking_bytes, training_bytes
from rlhf_dist.planning.sizes import ModelSize
from rlhf_dist.planning.zero_buffers import gathered_bytes, zero_buffer_bytes

LOAD, GENERATE, UPDATE, STEP, PUBLISH, SAVE = "load", "generate", "update", "step", "publish", "save"
KEPT = "kept"
"""What is there in every phase that an actor has no part in."""
Parts = dict[str, float]
"""Bytes by what they are; parts with `(host)` in their names are in host memory also where there are GPUs."""
Phases = dict[str, Parts]
"""Of an actor, what fills its memory in each phase that it works in, and `KEPT`."""
SUB_GROUP = 1e9
"""Elements that ZeRO-3 steps at once (DeepSpeed's `sub_group_size`)."""


@dataclass(frozen=True)
class LearnerWork:
    """What the ranks of a learner group hold and do."""

    trained: tuple[ModelSize, ...]
    asked: tuple[ModelSize, ...] = ()
    """Frozen models that they ask, cut over the ranks."""
    asked_on_host: bool = False
    lora: bool = False
    bucket_bytes: float = 0.0
    """Of a published bucket; 0: nothing is published."""
    held_version: float = 0.0
    """Bytes of versions that each rank holds on its device for engines to take there."""
    masked_row: int = 0
    """Tokens of a row under an attention mask; 0: there is none."""
    checkpoints: bool = True
    """States are written, too, not only the model at the end."""
    lends: bool = False
    """All but the weights goes to the host while engines generate on the same device."""

    @property
    def num_trained(self) -> int:
        """Parameters with gradients."""
        return sum(size.adapters if self.lora else size.parameters for size in self.trained)

    @property
    def num_held(self) -> int:
        """Parameters of what is trained, with those that stay as they are beneath adapters."""
        return self.num_trained + (sum(size.parameters for size in self.trained) if self.lora else 0)


def learner_phases(work: LearnerWork, learner: Learner, *, learns: bool = True) -> Phases:
    """Bytes on one rank (Rajbhandari et al. 2020, arXiv:1910.02054, section 3: what each ZeRO stage divides).

    Args:
        work: what the group does.
        learner: its settings.
        learns: it does not only look, as DPO's group does while its model is the reference.
    """
    kept, gradients = kept_parts(work, learner), gradient_bytes(work, learner)
    beside: Parts = {} if "gradients" in kept else {"gradients": gradients}
    width, shards = BYTES[learner.dtype], learner.ranks if learner.zero_stage == 3 else 1
    phases = {
        KEPT: kept,
        LOAD: kept | {"weights as they are read": _being_read(work, learner)},
    }
    if not learns:
        return phases | {UPDATE: kept | _looking(work.trained[0], learner)}
    phases |= {
        UPDATE: kept | beside | update_parts(work, learner),
        STEP: kept | beside | {"gradients as they are stepped": _stepped(work, learner)},
        SAVE: kept | {"copy to be written (host)": _written(work, learner)},
    }
    if work.bucket_bytes:
        whole = min(work.bucket_bytes, work.trained[0].parameters * width / shards)
        phases[PUBLISH] = kept | {"buckets": whole, "buckets (host)": 2 * whole}
    if work.lends:
        stays = {
            name: value for name, value in kept.items() if name in ("parameters", "held version") or "(host)" in name
        }
        # The pinned memory that the others go to is kept for the next time.
        pinned = {"pinned for others' turns (host)": sum(kept.values()) - sum(stays.values())}
        phases = {name: parts | pinned for name, parts in (phases | {GENERATE: stays}).items()}
    return phases


def kept_parts(work: LearnerWork, learner: Learner) -> Parts:
    """What stays on a rank between two steps."""
    ranks, stage, trained = learner.ranks, learner.zero_stage, work.num_trained
    width, half = BYTES[learner.dtype], learner.dtype != "float32"
    # Adam's two moments; and the fp32 master copy where training is in half precision or ZeRO cuts flat partitions.
    optimiser = trained * (12 if half or stage >= 1 else 8) / (ranks if stage >= 1 else 1)
    parts = {
        "parameters": work.num_held * width / (ranks if stage == 3 else 1),
        "optimiser (host)" if learner.cpu_offload else "optimiser": optimiser,
    }
    if work.held_version:
        parts["held version"] = work.held_version
    if work.asked:
        asked = sum(size.parameters for size in work.asked) * width / ranks
        parts["asked models (host)" if work.asked_on_host else "asked models"] = asked
    if stage == 3 or (stage == 1 and half):  # buffers of these stages last
        parts["gradients"] = gradient_bytes(work, learner)
    return parts


def gradient_bytes(work: LearnerWork, learner: Learner) -> float:
    """Sums of gradients, in fp32 whatever the precision."""
    return float(work.num_trained * BYTES["float32"] / (learner.ranks if learner.zero_stage >= 2 else 1))


def update_parts(work: LearnerWork, learner: Learner) -> Parts:
    """A micro-batch of the most tokens through the model that needs most: one after the other they go forward and back."""
    tokens, dtype = tokens_of_a_rank(learner), learner.dtype
    checkpointing = learner.gradient_checkpointing

    def needs(size: ModelSize) -> Parts:
        largest = training_bytes(size, dtype, tokens, checkpointing=checkpointing, masked_row=work.masked_row)
        head = head_bytes(size, dtype, tokens, learns=True)
        if not checkpointing:
            return {"activations": largest, "head": head}
        # The head is done with before the layers are computed anew.
        inputs = float(tokens * size.layers * size.hidden * BYTES[dtype])
        return {"activations": inputs, "head": head} if inputs + head > largest else {"activations": largest}

    looked = [_looking(size, learner) for size in work.asked]
    most = max([*map(needs, work.trained), *looked], key=lambda parts: sum(parts.values()))
    width, stage = BYTES[dtype], learner.zero_stage
    buffers = [zero_buffer_bytes(size.hidden, stage, size.parameters, width=width) for size in work.trained]
    buffers += [gathered_bytes(size.hidden, size.parameters, width=width) for size in work.asked]
    return {name: value for name, value in {**most, "ZeRO's buffers": max(buffers)}.items() if value}


def tokens_of_a_rank(learner: Learner) -> int:
    """Tokens of a micro-batch that one rank computes; with `sequence_parallel` ranks share its row."""
    return -(-learner.micro_batch_tokens // learner.sequence_parallel)


def _looking(size: ModelSize, learner: Learner) -> Parts:
    tokens, dtype = tokens_of_a_rank(learner), learner.dtype
    return {
        "activations": looking_bytes(size, dtype, tokens),
        "head": head_bytes(size, dtype, tokens, learns=False),
    }


def _being_read(work: LearnerWork, learner: Learner) -> float:
    """Of the largest model: stage 1 and 2 flatten a second copy of the weights, stage 3 holds one weight whole at a time."""
    width, largest = BYTES[learner.dtype], max(work.trained, key=lambda size: size.parameters)
    if learner.zero_stage == 3 and learner.ranks > 1:
        return float(largest.vocabulary * largest.hidden * width)
    return float(largest.parameters * width) if learner.zero_stage else 0.0


def _stepped(work: LearnerWork, learner: Learner) -> float:
    """ZeRO-3, and 1 and 2 in fp32, hand the optimiser a flat copy of a part of the gradients."""
    if learner.zero_stage == 0 or (learner.dtype != "float32" and learner.zero_stage < 3):
        return 0.0
    share = work.num_trained / learner.ranks
    return 4.0 * (min(share, SUB_GROUP) if learner.zero_stage == 3 else share)


def _written(work: LearnerWork, learner: Learner) -> float:
    """A rank's share of what is copied so that it can be written while training goes on: weights, and the optimisers' states."""
    if work.checkpoints:
        return work.num_trained * (BYTES[learner.dtype] + 12.0) / learner.ranks
    return float(work.trained[0].parameters * BYTES[learner.dtype]) / learner.ranks
