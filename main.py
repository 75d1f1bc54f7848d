"""Trains, evaluates and replays.

    python main.py --config configs/shapes.py --workdir runs/shapes
    python main.py --config configs/coco_r50.py --workdir runs/r50 --config.optim.base_lr=0.01
    python main.py --config runs/r50/config.json --workdir runs/r50 --mode evaluate

The same command goes on where a run stopped. Exit status: 0 done, 1 the run failed or was stopped,
2 a mistake in the command, the config or the data.
"""

import argparse
import errno
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))


def main(argv: list[str] | None = None) -> int:
    """Parses, calls, prints; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="of configs/, or WORKDIR/config.json")
    parser.add_argument("--workdir", help="folder of the run; default runs/<name of the config>")
    parser.add_argument("--mode", default="train", choices=("train", "evaluate", "replay"))
    parser.epilog = "--config.GROUP.FIELD=VALUE overrides a field; configs/common.py lists them."
    args, rest = parser.parse_known_args(argv)
    prefix = "--config."
    strange = [text for text in rest if not text.startswith(prefix)]
    if strange:
        parser.error(f"unknown argument {strange[0]!r}; fields are set as --config.train.seed=1")
    config_path = Path(args.config)
    workdir = Path(args.workdir) if args.workdir else Path("runs") / config_path.stem

    from configs import common
    from maskrcnn_jax import config as config_lib
    from maskrcnn_jax.errors import Stopped, UserError

    try:
        overrides = [text.removeprefix(prefix) for text in rest]
        if args.mode == "replay":
            config_path = workdir / "flight" / "config.json"
        config = config_lib.load(config_path, overrides, schema=common.get_config())
        for warning in config_lib.validate(config, args.mode):
            print(f"WARNING: {warning}", flush=True)
        return _run(args.mode, config, workdir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"error: {error.filename or workdir}: the disk is full ({error})", file=sys.stderr)
        return 2
    except Stopped as reason:
        print(reason, file=sys.stderr)
        return 1


def _run(mode: str, config, workdir: Path) -> int:
    from maskrcnn_jax import runtime

    runtime.start(config.train.compile_cache, config.train.deterministic)
    from maskrcnn_jax import evaluate, flight, traces, train

    kept = traces.beside_the_cache()
    if mode == "evaluate":
        evaluate.evaluate_run(config, workdir, kept)
    elif mode == "replay":
        flight.replay(config, workdir, kept)
    else:
        train.train_and_evaluate(config, workdir, kept)
    return 0


def leave(status: int) -> None:
    """Ends the process; after a failure at once, before background threads add their own noise."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)
    sys.exit(0)


if __name__ == "__main__":
    leave(main())
