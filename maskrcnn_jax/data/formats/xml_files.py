"""XML from strangers: no document types, so no entities that grow or read files."""

import contextlib
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from maskrcnn_jax.data.formats import reading
from maskrcnn_jax.errors import UserError

_DEEPEST = 100  # of elements in elements; annotations have five


class _Refused(Exception):
    """What an annotation file has no need of."""


def read_xml(path: Path) -> ElementTree.Element:
    """The root element of an XML file.

    Raises:
      UserError: it cannot be read, is no XML, has a DOCTYPE or is nested too deep.
    """
    # As text, whose encoding is found out; the declaration of another one is not followed.
    text = reading.read_text(path).lstrip("\ufeff")
    parser, builder = expat.ParserCreate(), ElementTree.TreeBuilder()
    parser.buffer_text = True
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise _Refused(f"elements are nested deeper than {_DEEPEST}")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, _Refused, ValueError) as error:
        raise UserError(f"{path}: not usable as XML ({error}); export it again") from error
    return builder.close()


def root_name(path: Path) -> str:
    """The name of the root element, from the start of a file; "" if it is no XML."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(4096)
    except OSError:
        return ""
    names: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, _: names.append(name)
    parser.StartDoctypeDeclHandler = _refuse_doctype
    # Cut off, or refused: what was read before counts.
    with contextlib.suppress(expat.ExpatError, ValueError, LookupError, _Refused):
        parser.Parse(start, False)
    return names[0] if names else ""


def _refuse_doctype(*_: object) -> None:
    raise _Refused("it has a DOCTYPE, which annotation tools do not write; remove it")
