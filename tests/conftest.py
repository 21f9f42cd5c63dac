"""What all tests share."""

import os

import pytest
import torch

# The tensors here are small: more threads would only wait for each other.
torch.set_num_threads(1)

if os.environ.get("CKDLITE_TYPECHECK") == "1":
    # Before anything imports the library: every annotated shape is then checked at each call.
    from jaxtyping import install_import_hook

    install_import_hook("ckdlite", "beartype.beartype")


@pytest.fixture(autouse=True)
def _no_open_figures():
    """No test leaves a figure behind for the next one."""
    yield
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
