"""All formats, and finding out which one a source is in."""

from pathlib import Path
from types import ModuleType

from maskrcnn_jax.data.formats import coco, labelme, labelstudio, reading, via
from maskrcnn_jax.data.formats.draft import Draft, Options
from maskrcnn_jax.errors import UserError

FORMATS: tuple[ModuleType, ...] = (via, labelme, labelstudio, coco)


def names() -> list[str]:
    """What --from takes."""
    return [module.NAME for module in FORMATS]


def find(kind: str) -> ModuleType:
    """The format of that name.

    Raises:
      UserError: there is none; lists all.
    """
    for module in FORMATS:
        if kind == module.NAME:
            return module
    raise UserError(f"--from {kind}: there is no such format; one of {', '.join(names())}")


def detect(source: Path) -> ModuleType:
    """The format that a file or folder is in.

    Raises:
      UserError: there is no such file, no format fits, or several do; says which were tried.
    """
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder; correct the name")
    fitting = [module for module in FORMATS if module.detect(source)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        several = " and ".join(module.NAME for module in fitting)
        raise UserError(f"{source}: may be {several}; say which: --from {fitting[0].NAME}")
    if source.suffix.lower() == ".json" and source.is_file():
        reading.read_json(source)  # if it is damaged, that is what is wrong
    tried = "".join(f"\n  {module.NAME}: {module.SUMMARY}" for module in FORMATS)
    raise UserError(
        f"{source}: no known annotation format; name the file or folder that the labelling tool "
        f"exported, or say with --from which of these it is:{tried}"
    )


def read(source: Path, kind: str = "", options: Options = Options()) -> Draft:  # noqa: B008
    """Reads a source of a kind, or of the kind that it is found to be.

    Raises:
      UserError: it cannot be used at all.
    """
    try:
        module = find(kind) if kind else detect(source)
        if not source.exists():
            raise UserError(f"{source}: there is no such file or folder; correct the name")
        return module.read(source, options)
    finally:
        reading.forget()
