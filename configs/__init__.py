"""Configs: `common.py` holds every field, each other file is a short difference from it.

They import each other as `from configs import common`; `maskrcnn_jax.config.load` sees to it that
this works from any working directory.
"""
