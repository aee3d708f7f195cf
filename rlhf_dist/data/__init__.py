"""Prompts, demonstrations and preferences: what a run reads."""
