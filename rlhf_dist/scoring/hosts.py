"""Where the models of a scorer are: in its own process, or cut over several, a GPU each, which it asks and watches.

Of several, each is a child of the scorer's process. They meet over loopback, and load and compute the same things in the same
order, since that is collective; the scorer itself is none of them, so that the death of one wakes it whatever they are at.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import numpy as np
import torch

from rlhf_dist.cluster.children import NEWS_S, Children
from rlhf_dist.cluster.orphans import die_with
from rlhf_dist.errors import RlhfDistError, WorkerDied, WorkerLost
from rlhf_dist.imports import import_transformers
from rlhf_dist.models import PackedBatch
from rlhf_dist.models.host_copy import HostCopy
from rlhf_dist.models.wrapped import RowLayout

POLL_S = 1.0
"""How often one that waits for the children looks whether all live."""


class AskedModel(Protocol):
    """A model behind the question that a scorer has for it."""

    @property
    def layout(self) -> RowLayout:
        """How sequences must lie in rows for it."""

    def __call__(self, batch: PackedBatch, **options: Any) -> torch.Tensor:
        """The answer, [selected, ...]."""


class Host(Protocol):
    """Where a scorer's models are."""

    device: str
    """Where batches must lie."""

    def load(self, kind: Callable[..., Any], **arguments: Any) -> AskedModel:
        """Make what asks a model there, with arguments beside `device` and `processes`; it has the model as `module`."""

    def offload(self) -> None:
        """Have all models leave their devices."""

    def reload(self) -> None:
        """Have them come back."""

    def close(self) -> None:
        """End all processes that it started; another thread may be waiting for them."""


def host_of(device: str, processes: int) -> Host:
    """The scorer's own process, or so many of their own."""
    return Here(device) if processes == 1 else Spread(processes)


class Here:
    """Models in this process."""

    def __init__(self, device: str, processes: int = 1) -> None:
        """Load nothing yet; `processes`: over how many each model is cut, of which this is one."""
        self.device, self._processes = device, processes
        self._modules: list[torch.nn.Module] = []
        self._lodging = HostCopy(())

    def load(self, kind: Callable[..., Any], **arguments: Any) -> Any:
        """See `Host`."""
        made = kind(**arguments, device=self.device, processes=self._processes)
        self._modules.append(made.module)
        self._lodging = HostCopy(self._modules)
        return made

    def offload(self) -> None:
        """See `Host`."""
        self._lodging.leave()

    def reload(self) -> None:
        """See `Host`."""
        self._lodging.come_back()

    def close(self) -> None:
        """It has started nothing."""


class Spread:
    """Models cut over child processes."""

    device = "cpu"

    def __init__(self, processes: int) -> None:
        """Start them, and let them meet.

        Raises:
            WorkerLost: one was killed.
        """
        spawn = multiprocessing.get_context("spawn")
        self._children, self._pipes, self._loaded = Children(), list[Connection](), 0
        self._meeting = tempfile.TemporaryDirectory(prefix="rlhf_dist-scorer-", ignore_cleanup_errors=True)
        for rank in range(processes):
            ours, theirs = spawn.Pipe()
            place = (rank, processes, os.path.join(self._meeting.name, "store"))
            arguments = (theirs, place, torch.get_num_threads(), os.getpid())
            spawn.Process(target=_serve, args=arguments, name=f"scorer-part-{rank}", daemon=True).start()
            theirs.close()
            self._pipes.append(ours)
        self._answers()
        self._children.are_complete()

    def load(self, kind: Callable[..., Any], **arguments: Any) -> AskedModel:
        """See `Host`.

        Raises:
            WorkerLost: a process died.
            WorkerDied: it raised, and all have ended then; or what it raised, if it is one of ours.
        """
        layout = self._everyone("load", kind, arguments)
        self._loaded += 1
        return _Elsewhere(self, self._loaded - 1, layout)

    def ask(self, number: int, batch: PackedBatch, options: dict[str, Any]) -> torch.Tensor:
        """What the model that was loaded as this number says; raises as `load`."""
        arrays = [getattr(batch, name).numpy() for name in batch.__dataclass_fields__]
        return torch.from_numpy(self._everyone("ask", number, arrays, options))

    def offload(self) -> None:
        """See `Host`."""
        self._everyone("offload")

    def reload(self) -> None:
        """See `Host`."""
        self._everyone("reload")

    def close(self) -> None:
        """See `Host`."""
        self._children.end()
        self._meeting.cleanup()

    def _everyone(self, method: str, *arguments: Any) -> Any:
        """Have all processes do the same at once; returns what the first says."""
        try:
            for pipe in self._pipes:
                pipe.send((method, arguments))
        except OSError as error:
            raise self._lost() from error
        return self._answers()

    def _answers(self) -> Any:
        waiting, said = {pipe: rank for rank, pipe in enumerate(self._pipes)}, dict[int, Any]()
        while waiting:
            for pipe in wait([*waiting], timeout=POLL_S):
                assert isinstance(pipe, Connection)
                try:
                    said[waiting.pop(pipe)] = answer = pipe.recv()
                except (EOFError, OSError) as error:
                    raise self._lost() from error
                if isinstance(answer, Exception):
                    self._children.expect_end()
                    self._children.kill()  # the others would wait for it in a collective
                    for each in self._pipes:
                        each.close()
                    raise answer
            self._children.check()
        return said[0]

    def _lost(self) -> WorkerLost:
        """Why a pipe is shut."""
        try:
            self._children.check(news_s=NEWS_S)
        except WorkerLost as told:
            return told
        return WorkerLost("the processes that a scorer's models are cut over have ended")


class _Elsewhere:
    """A model that is cut over the processes of a host."""

    def __init__(self, host: Spread, number: int, layout: RowLayout) -> None:
        self._host, self._number, self.layout = host, number, layout

    def __call__(self, batch: PackedBatch, **options: Any) -> torch.Tensor:
        """What it says."""
        return self._host.ask(self._number, batch, options)


class _Part:
    """What one of the processes holds and does."""

    def __init__(self, rank: int, device: str, processes: int) -> None:
        self._rank, self._host = rank, Here(device, processes)
        self._asked: list[AskedModel] = []

    def load(self, kind: Callable[..., Any], arguments: dict[str, Any]) -> RowLayout:
        self._asked.append(self._host.load(kind, **arguments))
        return self._asked[-1].layout

    @torch.no_grad()
    def ask(self, number: int, arrays: list[Any], options: dict[str, Any]) -> np.ndarray[Any, Any] | None:
        batch = PackedBatch(*map(torch.from_numpy, arrays)).to(self._host.device)
        said = self._asked[number](batch, **options)
        return said.cpu().numpy() if self._rank == 0 else None  # they all say the same

    def offload(self) -> None:
        self._host.offload()

    def reload(self) -> None:
        self._host.reload()


def _serve(pipe: Connection, place: tuple[int, int, str], threads: int, parent: int) -> None:
    """Be one of the processes until the scorer has ended."""
    die_with(parent)
    torch.set_num_threads(threads)
    rank, processes, _ = place
    part: _Part | None = None
    method, arguments = "", tuple[Any, ...]()
    while True:
        try:
            if part is None:
                part, said = _Part(rank, _join(*place), processes), None
            else:
                said = getattr(part, method)(*arguments)
        except RlhfDistError as error:
            said = error
        except Exception as error:  # noqa: BLE001 - told where it was asked for
            said = WorkerDied(
                f"process {rank} of {processes} raised: {traceback.format_exc()}{type(error).__name__}: {error}"
            )
        pipe.send(said)
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return


def _join(rank: int, processes: int, meeting: str) -> str:
    """Meet the others; returns this one's device."""
    import_transformers()
    distributed = torch.distributed
    cuda = torch.cuda.is_available()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    if cuda:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        store=vars(distributed)["FileStore"](meeting, processes),
        rank=rank,
        world_size=processes,
        device_id=torch.device("cuda", rank) if cuda else None,
    )
    return f"cuda:{rank}" if cuda else "cpu"
