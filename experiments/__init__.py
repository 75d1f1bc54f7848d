"""The ablations of the Mask R-CNN paper, and of what it leaves open: one file per table.

`run.py` is the command; README.md tells what each table asks.
"""
