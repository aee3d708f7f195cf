"""Faults on purpose: a seeded schedule of them against a real run, and what must hold whatever happens."""
