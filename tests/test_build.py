"""tools/build.py on a book of one page: what it refuses, and what it keeps."""

from pathlib import Path

import build
import nbformat
import pytest

pytestmark = pytest.mark.slow

CONFIG = """\
title: One page
only_build_toc_files: true
execute:
  execute_notebooks: cache
"""
# Shows what the library held when the cell was executed.
READS = "from pathlib import Path\nprint('the library says', Path('ckdlite/word.txt').read_text())"


TOOLS = Path(build.__file__).parent
ADDRESSED = f"""\
repository:
  url: "https://github.com/OWNER/NAME"
  branch: "word"
sphinx:
  local_extensions:
    offline: {TOOLS.as_posix()}
"""


@pytest.fixture
def book(tmp_path):
    """A folder with a library and one page."""
    # A space, as in many a home folder.
    root = tmp_path / "one page"
    (root / "ckdlite").mkdir(parents=True)
    (root / "ckdlite" / "word.txt").write_text("first")
    (root / "requirements.txt").write_text("")
    (root / "_config.yml").write_text(CONFIG)
    (root / "_toc.yml").write_text("format: jb-book\nroot: page\n")
    write(root, READS)
    return root


def write(root, code: str, prose: str = "Words.") -> None:
    """Replace the page."""
    page = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(f"# Title\n\n{prose}"),
            nbformat.v4.new_code_cell(code),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(page, root / "page.ipynb")


def stamp(root):
    """The file that says to make that the book is built."""
    return root / "_build" / "html" / ".built"


def test_good_page_then_changed_library_then_broken_reference(book, capfd):
    assert build.main(book) == 0, capfd.readouterr().out
    assert stamp(book).exists()
    assert build.start_page(book).as_uri() in capfd.readouterr().out
    assert "%20" in build.start_page(book).as_uri()
    html = book / "_build" / "html" / "page.html"
    assert "the library says first" in html.read_text(encoding="utf-8")

    # The page is the same: only a dropped cache lets its cell say something new.
    (book / "ckdlite" / "word.txt").write_text("second")
    assert build.main(book) == 0, capfd.readouterr().out
    assert "the library says second" in html.read_text(encoding="utf-8")

    write(book, READS, "[A page that is not there](nowhere.md)")
    assert build.main(book) != 0
    assert "nowhere.md" in capfd.readouterr().out
    assert not stamp(book).exists()


def test_failed_cell_is_named(book, capfd):
    write(book, "1 / 0")
    assert build.main(book) != 0
    told = capfd.readouterr().out
    assert "A cell failed in page" in told
    assert "1 / 0" in told and "ZeroDivisionError" in told
    assert not stamp(book).exists()


@pytest.mark.parametrize("host", ["github.com", "git.example"])
def test_buttons_follow_from_the_address(book, capfd, host):
    config = CONFIG + ADDRESSED.replace("github.com", host)
    (book / "_config.yml").write_text(config, encoding="utf-8")
    assert build.main(book) == 0, capfd.readouterr().out
    html = (book / "_build" / "html" / "page.html").read_text(encoding="utf-8")
    there = (
        'href="https://github.com/OWNER/NAME"',
        'href="https://github.com/OWNER/NAME/issues/new?',
        'href="https://colab.research.google.com/github/OWNER/NAME/blob/word/page.ipynb"',
    )
    # Colab opens what lies on GitHub, and no button leads nowhere.
    assert [link in html for link in there] == [host == "github.com"] * 3
    assert ("colab.research" in html) == (host == "github.com")
