"""Which form of an operation a program gets, by the platform that it is traced for.

`jax.lax.platform_dependent` would leave it open until compilation, and trace every form and the
gradients of every form: a third of what it takes to trace a training step.
"""

from collections.abc import Callable
from typing import Any

import jax


def platform() -> str:
    """'cpu', 'gpu', 'tpu': where JAX puts what is not told to go elsewhere.

    That is the first of JAX_PLATFORMS, or that of `jax.default_device`.
    """
    device = jax.config.jax_default_device
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def by_platform(*args: Any, cpu: Callable, default: Callable) -> Any:
    """`cpu` or `default` of the arguments. Each is right anywhere and fast where it belongs."""
    return (cpu if platform() == "cpu" else default)(*args)
