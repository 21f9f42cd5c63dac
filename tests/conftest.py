"""What all tests share."""

import functools
import os
import threading
import warnings
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

# The tensors here are small: more threads would only wait for each other.
torch.set_num_threads(1)

if os.environ.get("CKDLITE_TYPECHECK") == "1":
    # Before anything imports the library: every annotated shape is then checked at each call.
    from jaxtyping import install_import_hook

    install_import_hook("ckdlite", "beartype.beartype")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_words):
        pass


@contextmanager
def serving(folder):
    """The address at which a folder is served, on this machine alone."""
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(30)


@pytest.fixture(autouse=True)
def _no_open_figures():
    """No test leaves a figure behind for the next one."""
    yield
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="module")
def compiles():
    """Whether `torch.compile` works here. Where it does not, the warning has now been given."""
    from ckdlite import lif

    lif._say_plain.cache_clear()
    lif._LOOPS.clear()  # what failed before runs as a plain loop, without a word
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lif.LIF(compiled=True)(torch.ones(3, 8, requires_grad=True)).sum().backward()
    return not any("torch.compile failed" in str(w.message) for w in caught)


@pytest.fixture
def needs_compiler(compiles):
    if not compiles:
        pytest.skip("torch.compile does not work here (no C++ compiler, or CKDLITE_TYPECHECK=1)")
