"""Where Ray put the bundles of a run: which node, which GPUs. Ranks are handed theirs in that order, which Ray does not keep.

So the ranks of a node are together, and neighbours on neighbouring GPUs: what they send each other stays short, and an engine
over several ranks' GPUs is on one node.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any, NamedTuple

from rlhf_dist.cluster.placement import Layout, Place
from rlhf_dist.errors import EnvironmentProblem, WaitTimeout

VISIBLE = "CUDA_VISIBLE_DEVICES"
AS_TOLD = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Else Ray hides all GPUs from an actor that asks for none, whatever it was told to see."""


AGAIN_S = 0.2
"""Between two looks at where bundles are."""


class Spot(NamedTuple):
    """Where a bundle is."""

    node: str
    """Ray's id of it."""
    address: str
    gpus: tuple[str, ...]
    """As `CUDA_VISIBLE_DEVICES` of that node names them."""


class Bundles:
    """The placement group of a layout, numbered as the layout numbers its bundles."""

    def __init__(self, layout: Layout) -> None:
        """Ask Ray for all bundles or none, packed onto few nodes; `settle` waits for them."""
        from ray.util.placement_group import placement_group

        self.layout = layout
        self._group = placement_group([dict(bundle) for bundle in layout.bundles], strategy="PACK")
        self._found: dict[int, Spot] = {}
        """By Ray's numbers."""
        self._order: dict[int, int] = {}
        """Our numbers to Ray's."""

    def settle(self, *, timeout_s: float) -> bool:
        """Wait until all bundles are there, and see where; Ray looks for other nodes for those of a node that is gone.

        Those that stayed keep their numbers, and so those who are in them. Returns whether any is elsewhere than before.

        Raises:
            EnvironmentProblem: the cluster has no room in time, or an engine would be cut over nodes; says what is where.
            WaitTimeout: a node does not say which GPUs it gave.
        """
        nodes = self._nodes(timeout_s)
        moved = [
            number for number, node in nodes.items() if number not in self._found or self._found[number][:2] != node
        ]
        for number, gpus in zip(moved, self._gpus_of(moved, timeout_s), strict=True):
            self._found[number] = Spot(*nodes[number], gpus)
        self._order |= ordered(self.layout, self._found, self._order, moved)
        check_engines(self.layout, {number: self.spot(number) for number in self._order})
        return bool(moved)

    def options(self, place: Place) -> dict[str, Any]:
        """Arguments of Ray's `options` that put an actor into its place."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy: Any = "SPREAD"
        if place.bundle is not None:
            strategy = PlacementGroupSchedulingStrategy(self._group, self._order[place.bundle])
        return {"num_cpus": place.cpus, "num_gpus": place.gpus, "scheduling_strategy": strategy}

    def spot(self, number: int) -> Spot:
        """Where a bundle of the layout is."""
        return self._found[self._order[number]]

    def sight(self, place: Place) -> dict[str, str]:
        """Variables by which an actor that shares ranks' GPUs sees these; to others Ray shows what they asked for."""
        if not (place.shares and self.layout.on_gpus):
            return {}
        gpus = [name for number in place.shares for name in self.spot(number).gpus]
        return {VISIBLE: ",".join(gpus), **AS_TOLD}

    def remove(self) -> None:
        """Give the bundles back; whoever is in them goes."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self._group)

    def _nodes(self, timeout_s: float) -> dict[int, tuple[str, str]]:
        """Id and address of each bundle's node, by Ray's numbers, once all are on nodes that live: one may be lost meanwhile."""
        import ray
        from ray.util.placement_group import placement_group_table

        deadline = time.monotonic() + timeout_s
        while self._group.wait(max(0.0, deadline - time.monotonic())):
            living = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
            places: dict[int, str] = placement_group_table(self._group)["bundles_to_node_id"]
            if living.keys() >= {*places.values()}:
                return {number: (node, living[node]) for number, node in places.items()}
            time.sleep(AGAIN_S)
        nodes = "; ".join(
            f"{node['NodeManagerAddress']} {_told(node['Resources'])}" for node in ray.nodes() if node["Alive"]
        )
        wanted = ", ".join(_told(bundle) for bundle in self.layout.bundles)
        raise EnvironmentProblem(
            f"no room for learners and scorers within {timeout_s:g} s. They ask for {wanted}; the nodes have {nodes}, and "
            "other runs may hold some of it. Lower learner.ranks, scoring.*_workers or scoring.tensor_parallel (GPUs of one "
            "node), or add nodes"
        )

    def _gpus_of(self, numbers: Collection[int], timeout_s: float) -> list[tuple[str, ...]]:
        """What Ray calls the GPUs of some bundles, asked from within them while nobody else is there."""
        if not self.layout.on_gpus:
            return [()] * len(numbers)
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ask: Any = ray.remote(_own_gpus)
        asked = []
        for number in numbers:
            place = PlacementGroupSchedulingStrategy(self._group, number)
            gpus = self.layout.bundles[number]["GPU"]
            asked.append(ask.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=place).remote())
        try:
            found: list[tuple[str, ...]] = ray.get(asked, timeout=timeout_s)
        except RayError as error:
            raise WaitTimeout(
                f"no answer within {timeout_s:g} s from nodes that were to tell their GPUs: {error}"
            ) from error
        return found


def ordered(layout: Layout, found: dict[int, Spot], order: dict[int, int], moved: Collection[int]) -> dict[int, int]:
    """Our numbers to Ray's, of bundles that have moved: by node, the node with most bundles first, then by GPU.

    Args:
        layout: says which bundles are alike; among these the numbers are dealt out.
        found: where each is, by Ray's numbers.
        order: as it was before; empty: nobody has a number yet.
        moved: Ray's numbers of those that are elsewhere now.
    """
    made: dict[int, int] = {}
    crowds = Counter(spot.node for spot in found.values())
    alike: dict[tuple[tuple[str, float], ...], list[int]] = defaultdict(list)
    for number, bundle in enumerate(layout.bundles):
        alike[tuple(sorted(bundle.items()))].append(number)

    def key(number: int) -> Any:
        node, address, gpus = found[number]
        return -crowds[node], address, node, [(len(name), name) for name in gpus], number

    for numbers in alike.values():
        free = [number for number in numbers if order.get(number) is None or order[number] in moved]
        made |= zip(free, sorted({*moved}.intersection(numbers), key=key), strict=True)
    return made


def check_engines(layout: Layout, spots: dict[int, Spot]) -> None:
    """Refuse engines over GPUs of several nodes.

    Raises:
        EnvironmentProblem: names one, and where its GPUs are.
    """
    for place in layout.places:
        nodes = {spots[number].node: spots[number].address for number in place.shares}
        if len(nodes) > 1:
            at = ", ".join(f"learner-{number} on {spots[number].address}" for number in place.shares)
            raise EnvironmentProblem(
                f"{place.name} would be cut over GPUs of {len(nodes)} nodes ({at}); expected those of one: each node's number "
                f"of learner ranks must be a multiple of rollout.tensor_parallel {len(place.shares)}. Change learner.ranks or "
                "rollout.tensor_parallel, or take cluster.placement hybrid or disaggregated"
            )


def _own_gpus() -> tuple[str, ...]:
    import ray

    return tuple(map(str, ray.get_runtime_context().get_accelerator_ids()["GPU"]))


def _told(resources: dict[str, float]) -> str:
    return " ".join(f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)) or "nothing"
