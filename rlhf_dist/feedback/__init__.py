"""Collecting people's judgements, and making one opinion out of several."""
