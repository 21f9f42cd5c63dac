"""ckdlite: knowledge distillation from an ANN to a spiking network, small enough to read.

The method is CKDSNN (arXiv 2511.06902): SAMD aligns where both networks look, NLD aligns their
logits after smoothing the student's with noise. Time is the first axis everywhere.
"""

__version__ = "0.1.0"
