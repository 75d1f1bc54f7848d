"""FLOPs that a function computes, with loops counted as often as they run.

XLA's cost analysis counts the body of a loop once, and on GPUs nothing of what is left to cuDNN. So
matrix products and convolutions are counted in the traced program itself: the body of a scan (and
of `lax.map`) times its length, of branches by platform the one that this platform takes, of other
branches the largest. A `while` without a known length counts once: that is NMS, which has no
products. Recomputed passes count as often as they are computed.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr


class Count(NamedTuple):
    """What one call does."""

    flops: float  # of products and convolutions; two for each multiplication with its addition
    traffic: float  # bytes of all operands and results, as if nothing were fused
    traffic_once: float  # the same with each loop's body counted once, as in XLA's analysis

    @property
    def loops(self) -> float:
        """How often, on average over the traffic, what XLA counts once is done."""
        return self.traffic / max(self.traffic_once, 1.0)


def _sum(counts: list[Count]) -> Count:
    return Count(*map(sum, zip(*counts, strict=True))) if counts else Count(0.0, 0.0, 0.0)


def count(function: Callable, *args: Any, platform: str = "") -> Count:
    """Counts a call with these arguments, which may be shapes (`jax.ShapeDtypeStruct`).

    platform: "cpu", "cuda", ...; by default the one that JAX computes on.
    """
    platform = platform or {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, platform)


def _of_jaxpr(jaxpr: core.Jaxpr, platform: str) -> Count:
    # A gradient rule may trace what nobody uses, which XLA leaves out: `ops.conv` does, on GPUs.
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _sum([_of_equation(equation, platform) for equation in used.eqns])


def _of_equation(equation: Any, platform: str) -> Count:
    name, params = equation.primitive.name, equation.params
    inner = [_of_jaxpr(j, platform) for j in _jaxprs(params)]
    if name == "cond":
        chosen = _branch(params.get("branches_platforms"), platform)
        return max(inner) if chosen is None else inner[chosen]
    if inner:
        found, times = _sum(inner), params["length"] if name == "scan" else 1
        return Count(times * found.flops, times * found.traffic, found.traffic_once)
    traffic = sum(_bytes(v.aval) for v in (*equation.invars, *equation.outvars))
    return Count(_FLOPS[name](equation) if name in _FLOPS else 0.0, traffic, traffic)


def _jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


def _branch(platforms: tuple | None, platform: str) -> int | None:
    """The branch of `lax.platform_dependent`; None: the branches are of another kind."""
    if platforms is None:
        return None
    own = [i for i, names in enumerate(platforms) if names is not None and platform in names]
    return own[0] if own else platforms.index(None)


def _dot(equation: Any) -> float:
    (axes, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in axes)


def _conv(equation: Any) -> float:
    params, kernel = equation.params, equation.invars[1].aval.shape
    products = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    # The gradient of a strided convolution is one of an array that is mostly zeros in between.
    zeros = math.prod(params["lhs_dilation"])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * products / zeros


_FLOPS = {"dot_general": _dot, "conv_general_dilated": _conv}


def _bytes(aval: Any) -> int:
    shape, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", None)
    # Keys of random numbers and tokens have no size to speak of.
    return math.prod(shape) * getattr(dtype, "itemsize", 0)
