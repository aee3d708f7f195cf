"""Heads of Hugging Face models, made to answer for chosen positions only: log-probs without whole logits, values in fp32."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from rlhf_dist.models.tensor_parallel import from_parts, is_cut

LOGITS_BYTES = 256 * 2**20
"""[tokens, vocab] logits are made in pieces of this many fp32 bytes, and made again in the backward pass."""

FAMILY_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a family's own code may raise when it is asked for something that it was not written for."""


def backbone_of(model: Any) -> Any:
    """What computes hidden states in a model with a head: `base_model`, unless that names another form of the family."""
    base = model.base_model
    if base is not model:
        return base
    heads = {id(model.get_output_embeddings()), id(getattr(model, "score", None))}
    bodies = [child for child in model.children() if id(child) not in heads]
    return bodies[0] if len(bodies) == 1 else base


class _SharingLinear(nn.Linear):
    """A linear layer in another's place, with its parameters."""

    @classmethod
    def around(cls, layer: nn.Linear) -> Self:
        """The same layer, sharing its parameters."""
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight = layer.weight
        if layer.bias is not None:
            made.bias = layer.bias
        return made


class ExactHead(_SharingLinear):
    """A head of tokens whose logits are fp32: at a logit of 20 the steps of bf16 are an eighth of a nat."""

    def forward(self, hidden: torch.Tensor, *_: Any) -> Any:
        """[..., vocab], float32."""
        return exact_logits(hidden, self.weight, self.bias)


class LogProbHead(ExactHead):
    """A language-model head that can return log-probs and entropies without the whole [tokens, vocab] logits.

    It is one module call whatever the number of pieces, which ZeRO-3 needs: ranks gather its weight equally often.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `nn.Linear`."""
        super().__init__(*args, **kwargs)
        self.finish = OwnFinish()

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor | None = None,
        temperature: float = 1.0,
        entropy_grad: bool = False,
    ) -> Any:
        """Log-prob of each target and entropy of each distribution, both float32 [tokens].

        Args:
            hidden: [tokens, hidden].
            targets: [tokens]; without, the answer is what the layer itself says, for the model's own forward.
            temperature: logits are divided by it.
            entropy_grad: whether entropies carry a gradient.
        """
        if targets is None:
            return super().forward(hidden)
        piece = max(1, LOGITS_BYTES // (4 * self.out_features))
        if len(hidden) <= piece:
            return self._piece(hidden, targets, temperature, entropy_grad)
        parts = [
            checkpoint(self._piece, h, t, temperature, entropy_grad, use_reentrant=False)
            for h, t in zip(hidden.split(piece), targets.split(piece), strict=True)
        ]
        return torch.cat([log_probs for log_probs, _ in parts]), torch.cat([entropy for _, entropy in parts])

    def _piece(
        self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.finish(self, hidden).float()
        if temperature != 1.0:
            logits = logits / temperature
        all_log_probs = torch.log_softmax(logits, dim=-1)
        log_probs = all_log_probs.gather(-1, targets[:, None])[:, 0]
        kept = all_log_probs if entropy_grad else all_log_probs.detach()
        # A token that the model rules out altogether adds nothing: 0 log 0 = 0.
        kept = torch.where(kept == -torch.inf, 0.0, kept)
        return log_probs, -(kept.exp() * kept).sum(-1)


class ScalarHead(_SharingLinear):
    """A head of rewards or values. It computes in fp32 also where the model does not: bf16 has three digits."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., heads], float32."""
        bias = None if self.bias is None else self.bias.float()
        return F.linear(hidden.float(), self.weight.float(), bias)


def exact_logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Hidden [..., width] times weight [vocab, width], and bias: float32, added up in fp32 whatever the model's dtype."""
    if is_cut(weight):
        return from_parts(lambda own, own_bias: exact_logits(hidden, own, own_bias), weight, bias)
    if weight.dtype == torch.float32:
        return F.linear(hidden.to(weight.dtype), weight, bias)
    product: torch.Tensor = _ExactProduct.apply(hidden.to(weight.dtype).flatten(0, -2), weight)  # type: ignore[no-untyped-call]
    logits = product.view(*hidden.shape[:-1], len(weight))
    return logits if bias is None else logits + bias.float()


class _ExactProduct(torch.autograd.Function):
    """[tokens, width] times [vocab, width] in 16 bits to [tokens, vocab] in fp32; no fp32 copy of the weight on a GPU."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda:
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        return torch.mm(hidden.float(), weight.t().float())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        hidden, weight = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        to_hidden, to_weight = ctx.needs_input_grad
        return (grad @ weight if to_hidden else None), (grad.t() @ hidden if to_weight else None)


def with_exact_logits(lm: Any) -> Any:
    """A language model whose own forward gives logits in fp32, as the policy's head does."""
    head = lm.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.dtype != torch.float32:
        lm.set_output_embeddings(ExactHead.around(head))
    return lm


class OwnFinish:
    """A model's own way from hidden states to logits: its forward, with a backbone that has run already.

    Families scale, cap and mask logits between the head and the end of their forward, each in its own words; running those
    words is the one way to miss none of them.
    """

    def __init__(self, shell: Any = None, stand_ins: tuple[_HasRun, _BareLinear] | None = None) -> None:
        """Take a causal language model, and the stand-ins that it has for backbone and head; None: logits are the head's."""
        self._shell, self._stand_ins = shell, stand_ins

    @classmethod
    def of(cls, lm: Any) -> OwnFinish:
        """That of a model, where its backbone and its head are its own children and its forward runs without them."""
        names = {id(child): name for name, child in lm.named_children()}
        backbone, head = names.get(id(backbone_of(lm))), names.get(id(lm.get_output_embeddings()))
        if backbone is None or head is None:
            return cls()
        shell = copy.copy(lm)
        shell._modules = dict(lm._modules)
        stand_ins = _HasRun(backbone_of(lm)), _BareLinear()
        shell._modules[backbone], shell._modules[head] = stand_ins
        finish, layer = cls(shell, stand_ins), lm.get_output_embeddings()
        try:
            with torch.no_grad():
                said = finish(layer, torch.zeros(2, layer.in_features).to(layer.weight.device, layer.weight.dtype))
        except FAMILY_ERRORS:  # whatever its forward asks of a backbone: the proof shows whether it is missed
            return cls()
        return finish if said.ndim == 2 and len(said) == 2 else cls()

    def __call__(self, layer: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [tokens, vocab] of hidden states [tokens, hidden], with the layer's weights as they lie here now."""
        if self._stand_ins is None:
            return exact_logits(hidden, layer.weight, layer.bias)
        ran, bare = self._stand_ins
        ran.hidden, bare.layer = hidden[None], (layer,)
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        # Its forward alone: hooks that ZeRO puts on the model are shared with the copy.
        logits: torch.Tensor = self._shell.forward(input_ids=ids, use_cache=False).logits[0]
        del ran.hidden, bare.layer
        return logits


class _HasRun(nn.Module):
    """In the place of a backbone: it says what was computed before, and has the backbone's numbers."""

    hidden: torch.Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self._backbone = (backbone,)  # in a tuple: its parameters are not this module's

    def __getattr__(self, name: str) -> Any:
        if "_backbone" not in self.__dict__ or name in ("hidden", "_backbone"):
            return super().__getattr__(name)
        found = getattr(self._backbone[0], name)
        return self if isinstance(found, nn.Module) else found

    def forward(self, *_: Any, **__: Any) -> _Hidden:
        return _Hidden(self.hidden)


class _BareLinear(nn.Module):
    """In the place of the head, within the head's own call."""

    layer: tuple[nn.Linear]

    @property
    def weight(self) -> torch.Tensor:
        """Some families ask for its dtype."""
        return self.layer[0].weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return exact_logits(hidden, self.layer[0].weight, self.layer[0].bias)


class _Hidden:
    """What a backbone returns, to a forward that reads it as a tuple or by name: hidden states, and nothing of all else."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int | slice) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
