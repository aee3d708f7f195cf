"""One rank's way into the process group, and DeepSpeed's."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

from rlhf_dist.cluster import rendezvous
from rlhf_dist.config import Timeouts
from rlhf_dist.imports import import_deepspeed, import_transformers


def join(
    door: rendezvous.Door, host: str, port: int, *, rank: int, ranks: int, timeouts: Timeouts, interface: str | None
) -> None:
    """Meet the other ranks. Waits for all of them, as long as a start may take.

    Args:
        door: this rank's, on whose address it works with the others.
        host: address of the first rank's door.
        port: its port.
        rank: this one's number.
        ranks: how many there are.
        timeouts: of the start, and of each collective from then on.
        interface: of the network; None: the one that has the door's address.
    """
    cuda = torch.cuda.is_available()
    rendezvous.choose_interface(door.address[0], interface)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(ranks),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
        LOCAL_SIZE="1",
        DS_ACCELERATOR="cuda" if cuda else "cpu",
    )
    import_transformers()
    import_deepspeed()
    import deepspeed

    # DeepSpeed's shared-memory collectives would be compiled here and now: they need g++ and ranks on one machine.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, timeout = "nccl" if cuda else "gloo", timedelta(seconds=timeouts.collective)
    store = rendezvous.key_store(door, host, port, rank=rank, ranks=ranks, timeout_s=timeouts.start)
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timeout,
        device_id=torch.device("cuda", 0) if cuda and ranks > 1 else None,
    )
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
