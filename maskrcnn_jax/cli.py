"""The console command `maskrcnn`, also `python -m maskrcnn_jax`: everything beside training.

Exit status: 0 done, 1 it failed or was stopped, 2 a mistake in the command, a file or the weights.
"""

import argparse
import io
import os
import sys

from maskrcnn_jax.commands import convert, export, import_weights, inspect, predict
from maskrcnn_jax.errors import Stopped, UserError

VERBS = {
    "predict": predict,
    "convert": convert,
    "inspect": inspect,
    "import-weights": import_weights,
    "export": export,
}


def main(argv: list[str] | None = None) -> int:
    """Parses, calls the verb, prints mistakes in one line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # File names may hold bytes that are no text; they must not end the run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as reason:
        print(reason, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output has gone, `| head` for example; nothing may be written any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # Permissions, a full disk: the place and the reason tell all.
        print(f"error: {error.filename or args.verb}: {error.strerror or error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maskrcnn",
        description="Segments pictures, converts and checks annotations, carries weights over.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    return parser
