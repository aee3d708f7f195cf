"""One trainable model under DeepSpeed ZeRO: backward on sums, one step per mini-batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_dist.config import Learner, Lora, Optimizer
from rlhf_dist.learner import optimizer_state
from rlhf_dist.learner.adapters import is_adapter, without_adapters
from rlhf_dist.learner.deepspeed_settings import settings_of
from rlhf_dist.learner.filling import fill, sharing
from rlhf_dist.learner.freeing import unhook
from rlhf_dist.learner.host_states import HostStates
from rlhf_dist.learner.schedule import move_to, schedule_of
from rlhf_dist.learner.writing import Write, write_tensors
from rlhf_dist.models import PolicyModel, ValueModel
from rlhf_dist.models.hollow import is_hollow


class TrainedModel:
    """A module, its optimiser and schedule, behind DeepSpeed."""

    def __init__(
        self,
        module: PolicyModel | ValueModel,
        optimizer: Optimizer,
        learner: Learner,
        *,
        total_steps: int,
        lora: Lora | None = None,
    ) -> None:
        """Shard the module over the process group that is already up.

        Args:
            module: wrapper around a Hugging Face model.
            optimizer: AdamW's settings.
            learner: ZeRO's stage, precision (master weights and sums of gradients are in fp32), where the optimiser's state is.
            total_steps: optimiser steps of the whole run, for the schedule.
            lora: the adapters that the module has, if any.
        """
        import deepspeed

        hidden = module.inner.config.get_text_config().hidden_size
        settings = settings_of(learner, clip=optimizer.max_grad_norm, hidden=hidden)
        hollow = any(map(is_hollow, module.parameters()))
        if hollow:
            fill(module, getattr(torch, learner.dtype), share=sharing(settings) if learner.zero_stage == 3 else None)
        adamw = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        schedule = schedule_of(adamw, optimizer, total_steps=total_steps)
        self.engine, _, _, _ = deepspeed.initialize(
            model=module, optimizer=adamw, lr_scheduler=schedule, config=settings, dist_init_required=False
        )
        self.states = HostStates(self.engine)
        """Masters, moments and gradients, which may leave the device between two updates."""
        self._clipped_norm: float | None = None
        self.engine.clip_fp32_gradients = self._clip
        self.module = module
        self.prefix, self.lora = module.prefix, lora
        self.zero_stage = learner.zero_stage
        self.lr = schedule
        if hollow:
            module.prove()
            module.train()

    @property
    def hugging_face(self) -> Any:
        """The Hugging Face model inside the wrapper."""
        return self.module.get_submodule(self.prefix.rstrip("."))

    @property
    def device(self) -> torch.device:
        """Where inputs must lie."""
        device: torch.device = self.engine.device
        return device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""
        return self.engine(*args, **kwargs)

    @property
    def steps(self) -> int:
        """Optimiser steps up to now, those that were left out among them."""
        return int(self.lr.last_epoch)

    def backward(self, loss: torch.Tensor) -> None:
        """Add gradients. DeepSpeed averages over ranks, so the loss must be the rank's sum times ranks over the count.

        A loss that is not finite makes all of them NaN, and so the next step one that every rank leaves out.
        """
        self.engine.backward(loss * finite_or_nan(loss), scale_wrt_gas=False)

    def step(self) -> dict[str, float] | None:
        """Clip, update, advance the schedule; returns the gradient norm before clipping and the learning rate used.

        None where the norm, which is that of all ranks together, is not finite: then weights and moments are as before, and
        only the schedule went on.
        """
        lr, number = self.engine.optimizer.param_groups[0]["lr"], self.steps + 1
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        if norm is None:
            norm = self._clipped_norm
        if not 0.0 <= float(norm) < math.inf:  # DeepSpeed says -1 for NaN and infinity, in some of its stages
            move_to(self.lr, number)
            return None
        return {"grad_norm": float(norm), "lr": float(lr)}

    def skip(self, steps: int) -> None:
        """Leave optimiser steps out: the schedule goes on where they would have brought it."""
        move_to(self.lr, self.steps + steps)

    def _clip(self) -> None:
        """What DeepSpeed calls without ZeRO in fp32, where it forgets the norm, and would take a step on one that is NaN."""
        from deepspeed.runtime.utils import clip_grad_norm_

        self._clipped_norm = float(
            clip_grad_norm_(parameters=self.module.parameters(), max_norm=self.engine.gradient_clipping())
        )
        if not math.isfinite(self._clipped_norm):
            self.engine.zero_grad()  # AdamW leaves alone what has no gradient

    def free(self) -> None:
        """Take DeepSpeed's hooks off the module; see `unhook`."""
        unhook(self.engine)

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """Name within the Hugging Face model, and full shape, of each parameter, in a fixed order; tied parameters once."""
        return [(name, getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in self._named()]

    def is_trained_whole(self, name: str) -> bool:
        """Whether a parameter of a model with adapters is trained beside them, as a classifier's head is."""
        return self.lora is not None and not is_adapter(name) and dict(self._named())[name].requires_grad

    def without_adapters(self) -> AbstractContextManager[None]:
        """Inside the block the model computes as it did before it was adapted: a policy as its own reference.

        Raises:
            ModelError: it has no adapters.
        """
        return without_adapters(self.hugging_face)

    def gathered(self, names: Sequence[str]) -> AbstractContextManager[Any]:
        """Within it the named parameters are whole on every rank; all ranks must enter (ZeRO-3)."""
        if self.zero_stage < 3:
            return nullcontext()
        import deepspeed

        chosen = dict(self._named())
        context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([chosen[name] for name in names])
        return context

    def tensors(self, names: Sequence[str]) -> list[tuple[str, torch.Tensor]]:
        """The named parameters' data; under ZeRO-3 only inside `gathered`."""
        chosen = dict(self._named())
        return [(name, chosen[name].data) for name in names]

    def state(self) -> dict[str, torch.Tensor]:
        """All that changes while this rank trains: what is optimised, its moments, other buffers, and the schedule's place."""
        buffers = {f"buffer/{name}": tensor for name, tensor in self.module.named_buffers()}
        return {**optimizer_state.held(self.engine), **buffers, "steps": torch.tensor(self.steps)}

    def take_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Be as `state` told, of a model of the same layout; all ranks must call."""
        for name, tensor in self.module.named_buffers():
            tensor.copy_(state[f"buffer/{name}"])
        optimizer_state.take(self.engine, state)
        self.engine.zero_grad()
        move_to(self.lr, int(state["steps"]))

    def save_state(self, folder: Path, *, share: tuple[int, int] = (0, 1), write: Write = write_tensors) -> None:
        """Copy this rank's share of the optimiser's state, and where the schedule is, and have it written.

        Args:
            folder: this rank's.
            share: this rank and their number.
            write: takes the file and the copies.
        """
        optimizer_state.save(self.engine, self.lr, folder, share=share, write=write)

    def load_state(self, folder: Path) -> None:
        """Go on from what `save_state` wrote into folders `rank-N` of this one, by however many ranks.

        Raises:
            ModelError: it is of another model.
        """
        optimizer_state.load(self.engine, self.lr, folder)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.module.named_parameters():
            if name.startswith(self.prefix):
                yield name.removeprefix(self.prefix), parameter


def finite_or_nan(value: torch.Tensor) -> torch.Tensor:
    """1 where a number is finite, else NaN: a loss times it has NaN gradients, even one that overflowed and whose own are not."""
    return torch.where(value.detach().isfinite(), 1.0, math.nan).to(value.dtype)
