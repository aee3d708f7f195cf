"""The plan's memory estimates against measured peaks, on what this machine has.

    python benchmarks/memory.py [--quick] [--json FILE]

Each actor of a PPO run is started in a process of its own, loads its model and does its largest piece of work. Measured is the
growth of its resident memory (on GPUs: of allocated device memory) over the same process before it loads anything, at the peak.
"""

from __future__ import annotations
