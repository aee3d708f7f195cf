"""Distributed reinforcement learning from human feedback: Ray, vLLM, DeepSpeed, Arrow.

Read `controller.py` first: it is the training loop, and every folder is a station of it.
"""

__version__ = "0.1.0"
