"""The plan's counting against torch's own tracker, on fake tensors of real shapes: nothing is allocated."""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from rlhf_dist.models import PackedBatch, PolicyModel, policy
from rlhf_dist.planning.activations import head_bytes, training_bytes
from rlhf_dist.planning.sizes import model_size
from tests.shapes import SHAPES, config_of

LAYERS, TOKENS = 4, 8192


def tracked(name: str, *, checkpointing: bool) -> tuple[float, float]:
    """Bytes at the peak of a forward and backward pass in bf16 beside the weights, and those of finished gradients in them."""
    from transformers import AutoModelForCausalLM

    config = config_of(name, num_hidden_layers=LAYERS)
    config._attn_implementation = "sdpa"
    with FakeTensorMode(allow_non_fake_inputs=True):
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        if checkpointing:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
        model = PolicyModel(lm).train()
        one = torch.zeros(1, dtype=torch.int64)
        ids, positions = torch.zeros(1, TOKENS, dtype=torch.int64), torch.arange(TOKENS)
        batch = PackedBatch(ids, positions[None], positions[:-1], ids[0, 1:], one, one + TOKENS)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            model(batch)[0].sum().backward()
    (found,) = tracker.get_tracker_snapshot("peak").values()
    parts = {str(kind).rpartition(".")[2]: size for kind, size in found.items()}
    return float(parts["Total"] - parts["PARAM"]), float(parts.get("GRAD", 0))


@pytest.fixture(autouse=True)
def without_a_trial(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model that has no numbers cannot prove itself by them."""
    monkeypatch.setattr(policy, "prove", lambda *_: None)
    return


@pytest.mark.parametrize(("name", "checkpointing"), [*((name, True) for name in SHAPES), ("8b", False)])
def test_activations_and_head_are_those_of_torchs_tracker(name: str, checkpointing: bool) -> None:
    config = config_of(name, num_hidden_layers=LAYERS)
    size = model_size(config, kind="policy")
    # On a CPU these kernels take a mask as wide as the row.
    row = TOKENS
    head = head_bytes(size, "bfloat16", TOKENS, learns=True)
    layers = training_bytes(size, "bfloat16", TOKENS, checkpointing=checkpointing, masked_row=row)
    inputs = 2.0 * TOKENS * size.layers * size.hidden
    found, gradients = tracked(name, checkpointing=checkpointing)
    planned = max(inputs + head, layers + gradients) if checkpointing else layers + head
    assert planned == pytest.approx(found, rel=0.15)
