"""Distributed reinforcement learning from human feedback: Ray, vLLM, DeepSpeed, Arrow.

Read `controller.py` first: it is the training loop. `data`, `rollout`, `store`, `scoring` and `learner` are stations of its way;
`tests/test_rooms.py` has all rooms, from the command line down to the errors.
"""

__version__ = "0.1.0"
