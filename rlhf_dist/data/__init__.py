"""Prompts, demonstrations and people's judgements: what a run reads."""
