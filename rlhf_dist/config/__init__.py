"""Every setting: typed, bounded, documented where it is declared. A default lives here and nowhere else.

Imports neither torch, ray nor vllm, so that `--help` and validation answer at once.
"""

from rlhf_dist.config.algorithm import Algorithm, Correction
from rlhf_dist.config.chaos import Chaos, ChaosConfig
from rlhf_dist.config.evaluation import EvaluateConfig
from rlhf_dist.config.files import dump, flat, keys, load, override, read_yaml
from rlhf_dist.config.job import Job, ScoringJob
from rlhf_dist.config.methods import METHODS, Method
from rlhf_dist.config.pipeline import EmbeddedTask, ModelShape, PipelineConfig
from rlhf_dist.config.rewards import (
    DISAGREEMENT,
    GOLD,
    UNSAFE,
    FunctionReward,
    ModelReward,
    RemoteReward,
    Reward,
    Safety,
)
from rlhf_dist.config.rl import RLConfig, RLJob
from rlhf_dist.config.rounds import RL, Experience, StopOn
from rlhf_dist.config.sections import (
    Cluster,
    DataFile,
    Learner,
    Lora,
    Optimizer,
    Prompts,
    Rollout,
    Scoring,
    Section,
    Telemetry,
    Timeouts,
    TooLong,
    Weights,
    WorkerRange,
)
from rlhf_dist.config.supervised import (
    DPO,
    SFT,
    CommentJudge,
    Demonstrations,
    DPOConfig,
    Feedback,
    RewardConfig,
    RewardModel,
    SFTConfig,
    Training,
)

__all__ = [
    "DISAGREEMENT",
    "DPO",
    "GOLD",
    "METHODS",
    "RL",
    "SFT",
    "UNSAFE",
    "Algorithm",
    "Chaos",
    "ChaosConfig",
    "Cluster",
    "CommentJudge",
    "Correction",
    "DPOConfig",
    "DataFile",
    "Demonstrations",
    "EmbeddedTask",
    "EvaluateConfig",
    "Experience",
    "Feedback",
    "FunctionReward",
    "Job",
    "Learner",
    "Lora",
    "Method",
    "ModelReward",
    "ModelShape",
    "Optimizer",
    "PipelineConfig",
    "Prompts",
    "RLConfig",
    "RLJob",
    "RemoteReward",
    "Reward",
    "RewardConfig",
    "RewardModel",
    "Rollout",
    "SFTConfig",
    "Safety",
    "Scoring",
    "ScoringJob",
    "Section",
    "StopOn",
    "Telemetry",
    "Timeouts",
    "TooLong",
    "Training",
    "Weights",
    "WorkerRange",
    "dump",
    "flat",
    "keys",
    "load",
    "override",
    "read_yaml",
]
