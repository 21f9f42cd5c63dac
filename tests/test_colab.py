"""On what Colab has: `make test-colab` runs these in the environment that tools/colab.py makes.

Elsewhere most are skipped. The chapters themselves are run there by nbval.
"""

import os
import queue
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import colab
import pytest
import stamp
from conftest import serving

import ckdlite

ROOT = Path(__file__).parent.parent
OLD = metadata.version("ipywidgets").startswith("7.")
on_colab = pytest.mark.skipif(not OLD, reason="runs in `make test-colab`")
PATIENCE = 60

EXPLORER = """
from ckdlite import figures, widgets
def draw(beta, T):
    fig, ax = figures.plt.subplots(figsize=(2, 1))
    ax.plot([0, beta * T])
    return fig
widgets.explorer(draw, alt=lambda beta, T: f"shows {beta} and {T}", caption="Look.",
                 beta=[0.5, 0.7, 0.9], T=[1, 2])
"""


def test_what_is_laid_over_has_colabs_versions():
    lines = colab.REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    there = {name: version for name, version in colab.COLAB.items() if name in pins}
    assert len(there) == 5 and "torch" not in pins
    for name, version in there.items():
        assert f"{pins[name]}.".startswith(f"{version}."), name


@pytest.mark.bad_input
@pytest.mark.parametrize("given", [[], ["--compair"], ["one", "two"]])
def test_wrong_arguments_are_told_how(given, capsys):
    assert colab.main(given) == 2
    assert "python tools/colab.py FOLDER" in capsys.readouterr().err


@on_colab
def test_what_is_pinned_comes_first_and_the_rest_from_below():
    import numpy
    import torch

    alike, other = colab.compare()
    assert {"ipython 7.34.0", "ipykernel 6.17.1", "ipywidgets 7.7.1"} <= set(alike)
    assert len(alike) + len(other) == len(colab.COLAB)
    assert Path(numpy.__file__).is_relative_to(sys.prefix)
    assert not Path(torch.__file__).is_relative_to(sys.prefix)
    assert Path(ckdlite.__file__).is_relative_to(ROOT)


@on_colab
def test_the_environment_below_keeps_its_own_packages():
    below = Path(metadata.distribution("torch").locate_file(""))
    (numpy,) = metadata.distributions(name="numpy", path=[str(below)])
    assert f"numpy=={numpy.version}\n" in (ROOT / "requirements.txt").read_text(encoding="utf-8")


class Kernel:
    """A kernel of this environment, and the widgets it has made."""

    def __init__(self, client):
        self.client, self.widgets = client, {}

    def next(self):
        """The next message, once the widgets it makes or changes are known."""
        message = self.client.get_iopub_msg(timeout=PATIENCE)
        content = message["content"]
        if message["msg_type"] == "comm_open":
            self.widgets[content["comm_id"]] = dict(content["data"]["state"])
        elif message["msg_type"] == "comm_msg" and content["data"].get("method") == "update":
            self.widgets[content["comm_id"]].update(content["data"]["state"])
        elif message["msg_type"] == "error":
            pytest.fail("\n".join(content["traceback"]))
        return message

    def wait(self, request):
        """Read until a request is done."""
        while True:
            message = self.next()
            done = message["content"].get("execution_state") == "idle"
            if done and message["parent_header"].get("msg_id") == request:
                return

    def move(self, slider, index):
        """What the page sends when a reader moves a slider."""
        data = {"method": "update", "state": {"index": index}, "buffer_paths": []}
        message = self.client.session.msg("comm_msg", {"comm_id": slider, "data": data})
        self.client.shell_channel.send(message)
        self.wait(message["header"]["msg_id"])

    def of(self, model):
        """The widgets of one kind, by their id."""
        return [key for key, state in self.widgets.items() if state.get("_model_name") == model]


@pytest.fixture
def kernel():
    """A kernel that has run a cell with an explorer."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=PATIENCE)
    try:
        found = Kernel(client)
        found.wait(client.execute(EXPLORER))
        yield found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@on_colab
def test_a_moved_slider_changes_the_picture(kernel):
    """As on Colab: no Stack, so the kernel draws when the page says that a slider moved."""
    beta, steps = kernel.of("SelectionSliderModel")
    (picture,) = kernel.of("HTMLModel")
    assert not kernel.of("StackModel")
    seen = [kernel.widgets[picture]["value"]]
    for slider, index, shown in (
        (beta, 2, "0.9 and 1"),
        (steps, 1, "0.9 and 2"),
        (beta, 0, "0.5 and 2"),
    ):
        kernel.move(slider, index)
        seen.append(kernel.widgets[picture]["value"])
        assert f'alt="shows {shown}"' in seen[-1]
    pixels = {value.split("base64,")[1] for value in seen}
    assert len(pixels) == 4
    with pytest.raises(queue.Empty):
        kernel.client.get_iopub_msg(timeout=0.2)


@pytest.fixture
def repository(tmp_path):
    """The address of this checkout's last commit, on its branch `word`."""
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("not a git repository")
    bare = tmp_path / "site" / "owner" / "name"
    for command in (
        ["git", "clone", "--quiet", "--bare", str(ROOT), str(bare)],
        ["git", "-C", str(bare), "branch", "word", "HEAD"],
        ["git", "-C", str(bare), "update-server-info"],
    ):
        subprocess.run(command, check=True)
    with serving(tmp_path / "site") as origin:
        yield f"{origin}/owner/name"


@on_colab
def test_the_setup_cell_installs_the_library_from_a_repository(tmp_path, repository):
    """With Colab's module present and the library absent, pip fetches it and torch stays."""
    import numpy
    import torch

    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(bare)}))
    # Plain paths: unlike in tools/colab.py, the link to this checkout is not followed.
    here = [path for path in sys.path if path.endswith("site-packages")]
    (own / "here.pth").write_text("".join(f"{path}\n" for path in here))
    code = (
        "import sys, types\n"
        "try:\n    import ckdlite\nexcept ImportError:\n    print('absent')\n"
        "sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
        + "".join(stamp.setup_cell(ROOT, repository, "word")["source"])
        + "\nimport ckdlite, numpy, torch\n"
        "from ckdlite import networks\n"
        "networks.pretrained('teacher')\n"
        "print(ckdlite.__file__, numpy.__version__, torch.__version__, sep='\\n')\n"
    )
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [bare / "bin" / "python", "-c", code],
        cwd=tmp_path,
        env=clean | {"no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    absent, told, library, *versions = done.stdout.splitlines()
    assert absent == "absent" and told.startswith("Installing ckdlite")
    assert Path(library).is_relative_to(own)
    assert versions == [numpy.__version__, torch.__version__]
    assert not any(own.glob("torch*")) and not any(own.glob("numpy*"))
