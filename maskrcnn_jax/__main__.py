"""`python -m maskrcnn_jax` is the console command `maskrcnn`."""

import sys

from maskrcnn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
