"""Six worlds of four capabilities, the policies that decide in them, and what each ends with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from scripts.experiments.worlds.world import World, ceilings, prerequisite, roots, run

R = np.array([0.4, 0.3, 0.2, 0.1])
ALIKE = World(R, np.full(4, 0.3), roots(np.eye(4) * 0.08), probes=64)
RATES = World(R, np.full(4, 0.2), roots(np.diag([0.01, 0.2, 0.05, 0.1])))
SATURATED = World(R, np.array([0.95, 0.2, 0.2, 0.2]), roots(np.diag([0.1, 0.003, 0.1, 0.1])))
CEILINGS = World(R, np.full(4, 0.1), ceilings(np.full(4, 0.1), np.array([0.2, 0.9, 0.9, 0.9])))
HURTS = World(
    R,
    np.full(4, 0.2),
    roots(np.diag([0.1] * 4) + np.array([[0, 0, 0, 0], [-0.03, 0, 0, 0], [-0.03, 0, 0, 0], [0, 0, 0.05, 0]])),
)
ORDERED = World(
    np.array([0.1, 0.6, 0.3]), np.full(3, 0.1), prerequisite(np.array([0.2, 0.2, 0.1]), np.array([-1, 0, -1]))
)
WORLDS = {
    "all learn alike": ALIKE,
    "rates up to 20 times apart": RATES,
    "one mastered, one out of reach": SATURATED,
    "different ceilings": CEILINGS,
    "one hurts another": HURTS,
    "one needs another first": ORDERED,
}
SEEDS = {"gains": 40, "kl_headroom": 40, "read": 3}
"""Of each policy."""
FOR_READ = tuple(WORLDS)[:3]
"""Where ``read`` is run: its ensemble is fitted anew at each decision, which takes minutes a run."""


def study() -> pa.Table:
    """A row a world and policy and seed: the utility r · s at the end beyond that of the static mix."""
    rows: list[dict[str, Any]] = []
    for name, world in WORLDS.items():
        static = float(world.utility(world.r))
        even = np.full(len(world.r), 1 / len(world.r))
        known = {
            "best fixed": world.best_fixed()[1],
            "best schedule": world.best_schedule(),
            "uniform": float(world.utility(even)),
        }
        rows += [{"world": name, "policy": one, "seed": 0, "gained": value - static} for one, value in known.items()]
        for policy, seeds in SEEDS.items():
            if policy == "read" and name not in FOR_READ:
                continue
            for seed in range(seeds):
                gained = run(world, policy, seed).utility - static
                rows.append({"world": name, "policy": policy, "seed": seed, "gained": gained})
    return pa.Table.from_pylist(rows)
