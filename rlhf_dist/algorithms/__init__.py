"""Formulas on tensors: advantages, KL, losses. Imports torch and nothing of ours."""
