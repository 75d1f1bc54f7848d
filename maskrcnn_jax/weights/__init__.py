"""Other programs' checkpoints: read without their frameworks, brought into our layout and back.

One file per family holds its names and its algebra; `layout` the algebra that they share.
"""
