"""A function of rows, computed for the first rows alone, however many that are.

Shapes are static in a compiled program: where one image has 3 rows of work and room for 128, the
rest is computed for nothing. A loop over blocks ends when the work does. It pays where programs are
bound by arithmetic, on CPUs; accelerators are faster with all rows at once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

_ROWS = 32  # rows of all images in a block: enough for the fast kernels, few to compute for nothing


def leading_rows(
    fn: Callable[[Any, Any], Array], params: Any, rows: Any, count: Int[Array, ""]
) -> Array:
    """fn(params, rows) of the blocks asked for: [B, R, ...] of fn's [n, ...]; 0 behind them.

    fn: a function of parameters and of a tree of [n, ...] arrays, row by row. rows: the tree, its
    arrays [B, R, ...]; the first `count` rows of each image are wanted. Differentiable in params
    and in rows of floating point; the backward pass computes fn once more.
    """
    batch, num = jax.tree.leaves(rows)[0].shape[:2]
    block = max(1, min(num, _ROWS // batch))
    padding = -num % block
    padded = jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2))), rows
    )
    return _blocks(fn, block, params, padded, -(-count // block))[:, :num]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocks(fn: Callable, block: int, params: Any, rows: Any, num_blocks: Array) -> Array:
    run = partial(_run, fn, params)
    out = jax.eval_shape(run, _part(rows, 0, block))
    batch, num = jax.tree.leaves(rows)[0].shape[:2]
    result = jnp.zeros((batch, num, *out.shape[2:]), out.dtype)

    def body(i: Array, result: Array) -> Array:
        return _put(result, run(_part(rows, i, block)), i)

    return jax.lax.fori_loop(0, num_blocks, body, result)


def _forward(fn: Callable, block: int, params: Any, rows: Any, num_blocks: Array) -> tuple:
    return _blocks(fn, block, params, rows, num_blocks), (params, rows, num_blocks)


def _backward(fn: Callable, block: int, saved: tuple, g: Array) -> tuple:
    params, rows, num_blocks = saved
    leaves, tree = jax.tree.flatten(rows)
    smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    own = [x for x, is_smooth in zip(leaves, smooth, strict=True) if is_smooth]

    def body(i: Array, state: tuple) -> tuple:
        def of_block(params: Any, own: list) -> Array:
            rest = iter(own)
            parts = [
                next(rest) if is_smooth else _part(x, i, block)
                for x, is_smooth in zip(leaves, smooth, strict=True)
            ]
            return _run(fn, params, jax.tree.unflatten(tree, parts))

        _, vjp = jax.vjp(of_block, params, _part(own, i, block))
        params_grad, own_grad = vjp(_part(g, i, block))
        total, grads = state
        return (
            jax.tree.map(jnp.add, total, params_grad),
            [_put(x, part, i) for x, part in zip(grads, own_grad, strict=True)],
        )

    zeros = jax.tree.map(jnp.zeros_like, (params, own))
    params_grad, own_grad = jax.lax.fori_loop(0, num_blocks, body, zeros)
    rest = iter(own_grad)
    rows_grad = [next(rest) if is_smooth else None for is_smooth in smooth]
    return params_grad, jax.tree.unflatten(tree, rows_grad), None


_blocks.defvjp(_forward, _backward)


def _run(fn: Callable, params: Any, rows: Any) -> Array:
    """fn of the rows of all images in one."""
    batch, num = jax.tree.leaves(rows)[0].shape[:2]
    out = fn(params, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows))
    return out.reshape(batch, num, *out.shape[1:])


def _part(tree: Any, i: Array | int, block: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * block, block, 1), tree)


def _put(x: Array, part: Array, i: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part, i * part.shape[1], 1)
