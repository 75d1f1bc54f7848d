"""The verbs of the console command, one module each: arguments in, a library call, lines out.

A module has SUMMARY (one line), EXAMPLE, `add_arguments(parser)` and `run(args)`, which returns the
exit status. It imports what is heavy only in `run`, so that --help costs no JAX.
"""
