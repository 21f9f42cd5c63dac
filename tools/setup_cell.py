# @title Setup: run this cell first
def setup(version, address, branch, extras):
    """On Colab, install the library; anywhere, check its version."""
    import importlib
    import subprocess
    import sys
    import tempfile
    from importlib import metadata, util

    def installed():
        importlib.invalidate_caches()
        try:
            return importlib.import_module("ckdlite").__version__
        except ModuleNotFoundError:
            return None

    wanted = f"ckdlite[{extras}] @ git+{address or 'ADDRESS'}@{branch}"
    if installed() != version and address and "google.colab" in sys.modules:
        print("Installing ckdlite. This takes a minute.")
        # Colab's own PyTorch fits its GPU, and NumPy is loaded already.
        keep = tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False)
        with keep:
            for name in ("torch", "torchvision", "numpy"):
                if util.find_spec(name):
                    print(f"{name}=={metadata.version(name)}", file=keep)
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        done = subprocess.run(
            [*pip, "--constraint", keep.name, wanted],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"pip could not install ckdlite:\n{done.stderr}")
    if (found := installed()) != version:
        raise ImportError(
            f"This chapter goes with ckdlite {version}; "
            + (f"{found} is loaded." if found else "it is not installed.")
            + f"\nInstall it:  pip install '{wanted}'\n"
            + ("" if address else "ADDRESS: where you have the chapter from.\n")
            + "Then restart the kernel and run this cell again."
        )


setup(
    "VERSION",
    "ADDRESS",
    "BRANCH",
    "EXTRAS",
)
