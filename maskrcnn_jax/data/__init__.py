"""COCO JSON in, batches out. The only room with TensorFlow."""

import os

# TensorFlow only reads files here; what it says of CPUs and GPUs would mislead.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
