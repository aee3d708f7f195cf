"""Prompts to samples: engines, the worker around them, the vLLM weight plugin."""
