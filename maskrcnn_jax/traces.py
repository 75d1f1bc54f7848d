"""Traced programs, kept beside the compilation cache, so that no process traces them again.

JAX's cache keeps what XLA has made of a program. To find it there, the program is traced and
lowered anew: a third of the time until a small run has taken its first step. Here lies what
lowering gives, StableHLO (`jax.export`), under a name made of all that it came from: the values
that the caller tells, the arguments' shapes and places, the source of every module but the
installed libraries, the versions and settings of JAX, the kind and number of the devices.

What somebody changed by hand, in a notebook or by a patch in a test, has no source to tell it by.
So nothing is kept but for commands, which run this package alone: main.py, `maskrcnn`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import site
import sys
import sysconfig
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export
from jax.sharding import NamedSharding

from maskrcnn_jax.files import replacing
from maskrcnn_jax.ops.platform import platform

# Those that take part in a trace.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")

# Settings that no trace depends on.
_INDIFFERENT = ("jax_compilation_cache", "jax_persistent_cache", "jax_enable_compilation_cache")


class _Kept(NamedTuple):
    """A file's contents."""

    exported: bytes  # with all arguments in one tuple, and all results in one list
    donated: tuple[int, ...]  # arguments whose buffers the results may take
    results: Any  # the jax.tree_util.PyTreeDef of the results


class Traces:
    """Lowers functions, or reads what an earlier process has lowered."""

    def __init__(self, folder: Path | None = None, about: tuple = ()):
        """folder: None keeps nothing. about: what `about` added so far."""
        self._folder, self._about = folder, about

    def about(self, *values: Any) -> "Traces":
        """The same folder, for functions that are made of these values, too.

        values: as JSON. With those of earlier calls, all that tells one function of a name from
        another.
        """
        return Traces(self._folder, (*self._about, *values))

    def about_model(self, model: Any, num_classes: int) -> "Traces":
        """For functions of the model that `families.build` makes. model: the config's group."""
        return self.about(model.to_dict(), num_classes)

    def lower(self, name: str, jitted: Any, *args: Any) -> Any:
        """`jitted.lower(*args)`, a jax.stages.Lowered, which may come from an earlier process.

        name: of the function. args: arrays or jax.ShapeDtypeStruct.
        """
        if self._folder is None:
            return jitted.lower(*args)
        path = self._folder / f"{name.replace(' ', '_')}-{self._digest(name, args)}"
        kept = _read(path)
        if kept is None:
            try:
                kept = _export(jitted, args)
                data = zlib.compress(pickle.dumps(tuple(kept)), 1)
            except Exception:  # what cannot be exported is told in many ways
                return jitted.lower(*args)
            _write(path, data)
        return _lower(name, kept, args)

    def _digest(self, name: str, args: tuple) -> str:
        leaves, tree = jax.tree.flatten(args)
        shapes = [f"{np.shape(x)} {x.dtype} {getattr(x, 'sharding', None)}" for x in leaves]
        versions = [metadata.version(library) for library in _LIBRARIES]
        settings = {
            k: repr(v) for k, v in jax.config.values.items() if not k.startswith(_INDIFFERENT)
        }
        devices = [platform(), jax.devices()[0].device_kind, jax.device_count()]
        everything = name, self._about, str(tree), shapes, versions, settings, devices, _sources()
        text = json.dumps(everything, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()


def beside_the_cache() -> Traces:
    """Those in the folder of JAX's compilation cache; none where it is off or no local folder.

    Nor where several hosts take part, which would have to find the same, or where the program that
    runs is no file, as with `python -c` and in notebooks.
    """
    folder = jax.config.jax_compilation_cache_dir
    is_file = hasattr(sys.modules["__main__"], "__file__")
    if not folder or "://" in folder or jax.process_count() > 1 or not is_file:
        return Traces()
    return Traces(Path(folder) / "traces")


def _sources() -> list[str]:
    """Digests of this package's files and of all loaded ones that are not installed libraries."""
    names = "stdlib", "platstdlib", "purelib", "platlib"
    folders = (*map(sysconfig.get_path, names), site.getusersitepackages())
    libraries = tuple(f"{folder}{os.sep}" for folder in folders)
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    own = {Path(file) for file in loaded if file and not file.startswith(libraries)}
    own |= set(Path(__file__).parent.rglob("*.py"))
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in own if path.is_file())


def _export(jitted: Any, args: tuple) -> _Kept:
    traced = jitted.trace(*args)
    donated = [all(x.donated for x in jax.tree.leaves(i)) for i in traced.args_info[0]]
    exported = export.export(jitted)(*args)
    # Serialised trees of other classes than these would have to be registered first.
    flat = dataclasses.replace(
        exported,
        in_tree=jax.tree.structure(((0,) * len(exported.in_avals), {})),
        out_tree=jax.tree.structure([0] * len(exported.out_avals)),
    )
    places = tuple(i for i, gone in enumerate(donated) if gone)
    return _Kept(bytes(flat.serialize()), places, exported.out_tree)


def _lower(name: str, kept: _Kept, args: tuple) -> jax.stages.Lowered:
    exported = export.deserialize(bytearray(kept.exported))

    def call(*args: Any) -> Any:
        return kept.results.unflatten(exported.call(*jax.tree.leaves(args)))

    call.__name__ = name.replace(" ", "_")
    places = [getattr(x, "sharding", None) for x in jax.tree.leaves(args)]
    meshes = [place.mesh for place in places if isinstance(place, NamedSharding)]
    shardings = exported.out_shardings_jax(meshes[0]) if meshes else None
    out = None if shardings is None else kept.results.unflatten(shardings)
    return jax.jit(call, donate_argnums=kept.donated, out_shardings=out).lower(*args)


def _read(path: Path) -> _Kept | None:
    """None where there is no such file, or one that cannot be understood.

    Pickle would run what a stranger put there; so would JAX with the machine code beside it.
    """
    try:
        return _Kept(*pickle.loads(zlib.decompress(path.read_bytes())))
    except Exception:
        return None


def _write(path: Path, data: bytes) -> None:
    # Where the disk is full, the next process traces again.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)
