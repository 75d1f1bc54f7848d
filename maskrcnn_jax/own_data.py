"""The user's own data sets: imports the module that registers them, and calls the maker."""

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from ml_collections import ConfigDict

from maskrcnn_jax.data import registry
from maskrcnn_jax.data.coco import CocoData
from maskrcnn_jax.data.dataset import Dataset
from maskrcnn_jax.errors import UserError, line_of


def load_own(config: ConfigDict, cache: Path, split: str) -> CocoData:
    """The "train" or "val" set that `data.name` names, of those that `data.module` registers.

    Annotations, and pictures that are no files, are written below `cache`.

    Raises:
      UserError: the module cannot be imported or registers no such name, or making the data set
        failed; names the line of the user's file.
    """
    d = config.data
    if d.module:
        import_module(d.module)
    if d.name not in registry.registered():
        names = ", ".join(registry.registered()) or "nothing"
        told = f"{d.module} registers {names}; " if d.module else ""
        raise UserError(
            f"data.name={d.name!r} is registered nowhere; {told}call maskrcnn_jax.data.register"
            f"({d.name!r}, make) in the module that data.module names"
        )
    try:
        made = registry.make(d.name, split)
    except UserError:
        raise
    except Exception as error:  # the user's program
        raise UserError(
            f"data.name={d.name!r}: making {split!r} failed: {type(error).__name__}: {error}"
            f"{line_of(error)}"
        ) from error
    if isinstance(made, CocoData):
        return made
    if not isinstance(made, Dataset):
        raise UserError(
            f"data.name={d.name!r}: its maker returned {type(made).__name__} for {split!r}; return "
            "a maskrcnn_jax.data.Dataset"
        )
    # Modules of the same name in two projects have two folders.
    origin = f"{os.getcwd()}\0{d.module}"
    folder = f"{d.name}_{split}_{hashlib.sha256(origin.encode()).hexdigest()[:8]}"
    return made.to_coco(cache / "own" / folder, d.on_bad_image, progress=True)


def import_module(name: str) -> None:
    """Imports "package.module", or a file that ends in ".py"; once per process.

    The working directory, or the folder of the file, joins the end of the module search path.
    Raises UserError if it is not there or fails, with the line.
    """
    path = Path(name)
    is_file = path.suffix == ".py"
    folder = str(path.resolve().parent) if is_file else os.getcwd()
    if is_file and not path.is_file():
        raise UserError(f"data.module: there is no file {name}; give a .py file, or package.module")
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        if is_file:
            _run_file(path)
        else:
            importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # the user's program
        raise UserError(
            f"data.module: {name}: {type(error).__name__}: {error}{line_of(error)}"
        ) from error


def _run_file(path: Path) -> None:
    """Imports a file under a name of its own, which no installed module has."""
    key = f"_own_data_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if key in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(key, path.resolve())
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # where dataclasses and pickle look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
