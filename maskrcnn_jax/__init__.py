"""Mask R-CNN in JAX and Flax."""
