"""Which parameters a run trains, how fast, and from when: a table for the start of its log."""

from typing import Any

import jax

from maskrcnn_jax.optimizer import (
    first_stages,
    learning_rate_factors,
    parameter_path,
    place_of,
    stage_begins,
)

HEADER = ["parameters", "number", "rate factor", "trained from"]


def describe(params: Any, optim: Any, freeze_at: int, num_steps: int) -> list[list[str]]:
    """Rows under HEADER: the backbone's stages from the stem on, then the other parts.

    Parameters of one part that begin at different steps have a row each.
    """
    factors = learning_rate_factors(params, optim, freeze_at)
    begins = stage_begins(optim, num_steps)
    groups: dict[tuple[str, int], list[tuple[int, float]]] = {}

    def note(path: tuple, leaf: Any, factor: float, stage: int) -> None:
        begin = begins[stage] if factor and stage >= 0 else num_steps
        key = _part_of(parameter_path(path)), begin
        groups.setdefault(key, []).append((leaf.size, factor))

    stages = first_stages(params, optim.stages)
    jax.tree_util.tree_map_with_path(note, params, factors, stages)
    order = sorted(groups, key=lambda g: ("backbone/" not in g[0], place_of(g[0]), g))
    return [_row(*key, groups[key], num_steps) for key in order]


def _part_of(path: str) -> str:
    """backbone/res4 of 'backbone/res4_block2/conv1/conv/kernel'; elsewhere the first name."""
    part, _, rest = path.partition("/")
    return f"{part}/{rest.split('/')[0].split('_')[0]}" if part == "backbone" else part


def _row(part: str, begin: int, members: list[tuple[int, float]], num_steps: int) -> list[str]:
    number = f"{sum(size for size, _ in members):,}"
    if begin >= num_steps:
        return [part, number, "", "never: frozen"]
    low, high = (f"{f(factor for _, factor in members):.3g}" for f in (min, max))
    return [part, number, low if low == high else f"{low} to {high}", f"step {begin + 1}"]
