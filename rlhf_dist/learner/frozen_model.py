"""A model that learners ask and do not train, cut over their ranks: the reference, or a teacher, of any size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rlhf_dist.config import Learner, RLJob
from rlhf_dist.learner.deepspeed_settings import frozen_settings
from rlhf_dist.learner.filling import fill, sharing
from rlhf_dist.learner.freeing import unhook
from rlhf_dist.learner.host_states import HostWeights
from rlhf_dist.models import PackedBatch, PolicyModel, load_policy
from rlhf_dist.models.wrapped import RowLayout


@dataclass(frozen=True)
class FrozenSpec:
    """A policy that learners ask."""

    path: str
    temperature: float
    on_host: bool = False
    """Each rank's part is in host memory, and on the device only what a layer takes, while it computes."""

    @classmethod
    def all_of(cls, config: RLJob, folders: dict[str, tuple[str, ...]]) -> dict[str, FrozenSpec]:
        """Those of a run by their roles (`config.frozen`), from each role's folders."""
        on_host, temperature = config.scoring.frozen_on_host, config.rollout.temperature
        return {role: cls(folders[role][0], temperature, on_host) for role in config.frozen}

    def at(self, path: str) -> FrozenSpec:
        """The same, from another folder."""
        return replace(self, path=path)


class FrozenModel:
    """Log-probs of a policy of which each rank holds a part: DeepSpeed's ZeRO-3 without an optimiser.

    A forward pass gathers the weights layer by layer, so all ranks must make equally many at once.
    """

    def __init__(self, spec: FrozenSpec, settings: Learner) -> None:
        """Load it, and cut it over the process group that is already up.

        Raises:
            ModelError: the folder holds no such model, or its log-probs would not be its own.
        """
        import deepspeed

        dtype = getattr(torch, settings.dtype)
        base = load_policy(spec.path, dtype=dtype, attention=settings.kernels, hollow=True)
        hidden = base.config.get_text_config().hidden_size
        zero = frozen_settings(settings, hidden=hidden, on_host=spec.on_host)
        module = PolicyModel(base, temperature=spec.temperature)
        fill(module, dtype, share=sharing(zero))
        self.engine, _, _, _ = deepspeed.initialize(model=module, config=zero, dist_init_required=False)
        module.prove()
        self.engine.eval()
        self.states = HostWeights(self.engine)
        """Its weights, which may leave the device between two updates."""
        self.layout: RowLayout = module.layout

    @torch.no_grad()
    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Log-probs of a batch's targets at the rollout's temperature, float32 [selected]; all ranks must call."""
        log_probs: torch.Tensor = self.engine(batch)[0]
        return log_probs

    def free(self) -> None:
        """Take DeepSpeed's hooks off the module; see `unhook`."""
        unhook(self.engine)
