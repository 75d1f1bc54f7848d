"""COCO JSON in, batches out. The only room with TensorFlow."""

import os

# TensorFlow only reads and resizes here: what it says of processors would mislead, and without
# oneDNN its numbers do not depend on the processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
