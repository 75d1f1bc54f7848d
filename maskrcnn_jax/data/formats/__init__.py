"""Annotation formats: one file each, all read into a `Draft`, which becomes COCO JSON.

No TensorFlow here: `maskrcnn convert` and `maskrcnn inspect` run on the core packages.
"""
