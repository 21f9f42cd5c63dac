"""Sphinx extension: every page works from its own folder, asks for nothing else, and says nothing
in the console.

Equations become MathML when the book is built, so that no page loads a typesetter. The font they
are set in is cut down to the characters the book uses. Scripts for remote kernels are taken out.
Buttons lead to the repository and to Colab, where its address is known and on GitHub.
"""

import html
import json
import re
from importlib.resources import files
from pathlib import Path

from docutils import nodes
from fontTools import subset
from math_core import LatexError, LatexToMathML
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)
converter = LatexToMathML(fancy_error=False)
COLAB = "https://colab.research.google.com"
FONT = files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"


def as_mathml(latex: str, display: bool) -> str:
    """An equation as MathML; one that cannot be read raises LatexError."""
    if display and r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"  # as Sphinx's other typesetters do
    return converter.convert_with_local_state(latex, displaystyle=display)


def mathml(node, display: bool) -> str:
    """The equation of a node as MathML; one that cannot be read is a warning, and so an error."""
    latex = node.astext()
    try:
        return as_mathml(latex, display)
    except LatexError as error:
        logger.warning("equation %r: %s", latex, error, location=node)
        return f"<code>{html.escape(latex)}</code>"


def visit_math(self, node):
    """Write an inline equation."""
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    self.body.append(mathml(node, display=False) + "</span>")
    raise nodes.SkipNode


def visit_math_block(self, node):
    """Write a displayed equation and its number."""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(mathml(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def drop_thebe_listeners(app, _config):
    """Keep sphinx-thebe, which Jupyter Book always loads, from putting anything on a page."""
    for listeners in app.events.listeners.values():
        listeners[:] = [entry for entry in listeners if entry.handler.__module__ != "sphinx_thebe"]


def add_buttons(_app, config):
    """Lead to the repository, and chapters to Colab, where _config.yml gives the address."""
    options = config.html_theme_options
    # The theme knows few hosts, and Colab opens what lies on GitHub alone.
    known = options.get("repository_url", "").startswith("https://github.com/")
    options["use_repository_button"] = options["use_issues_button"] = known
    options["launch_buttons"] = {"colab_url": COLAB} if known else {}
    if not known:
        options.pop("repository_url", None)


def clean_context(_app, _pagename, _templatename, context, _doctree):
    """Drop what is left of thebe, set the theme mode that the theme's script expects, and see to
    the buttons of the repository."""
    for kind in ("css_files", "script_files"):
        context[kind] = [asset for asset in context[kind] if not names_thebe(asset)]
    context["default_mode"] = "auto"
    buttons = context.get("header_buttons", [])
    for place, button in enumerate(buttons):
        if button.get("label") == "launch-buttons":
            # A menu with Colab alone in it.
            link = {"text": "", "tooltip": "Open in Colab", "icon": "fas fa-rocket"}
            buttons[place] = button["buttons"][0] | link
        for one in (button, *button.get("buttons", [])):
            # One sign of a brand would fetch a font of 118 kB.
            if str(one.get("icon")).startswith("fab "):
                one["icon"] = "fas fa-code-branch"


def names_thebe(asset) -> bool:
    """Whether a script or style sheet belongs to thebe."""
    # Only the start of an inline script: a picture's base64 can spell anything.
    body = getattr(asset, "attributes", {}).get("body") or ""
    return "thebe" in str(getattr(asset, "filename", asset)) or body.startswith("const THEBE")


def blocks(found):
    """The parameters of a signature, a block each."""
    lines = found[1].replace("<dd>", '<div class="sig-line">').replace("</dd>", "</div>")
    return f'<div class="sig-lines">{lines}</div>'


def finish(app, error):
    """Cut the font to the book's characters, and let a page without scripts use the light theme."""
    if error or app.builder.format != "html":
        return
    characters = set()
    for page in Path(app.outdir).rglob("*.html"):
        source = page.read_text(encoding="utf-8")
        # "auto" is for the script; without scripts the style sheets want no theme named.
        clean = re.sub(r'(<html[^>]*) data-theme="auto"', r"\1", source)
        # Icons the page may not even use shall not be fetched before its text is drawn.
        clean = re.sub(r'<link rel="preload" as="font"[^>]*>', "", clean)
        # The same icons come as a font; as a script they would weigh 1.5 MB.
        clean = re.sub(r'<script src="[^"]*fontawesome[^"]*"></script>', "", clean)
        # What is read on the search button and on a fold is also what is read aloud.
        clean = re.sub(
            r'(<button class="btn search-button-field[^>]*) aria-label="[^"]*"', r"\1", clean
        )
        clean = clean.replace('<summary aria-label="Toggle hidden content">', "<summary>")
        # The parameters of a signature are no list of terms: none of them has a description there.
        clean = re.sub(r'<dl>\s*((?:<dd><em class="sig-param">.*?</dd>\s*)+)</dl>', blocks, clean)
        # The title of the book stands in a landmark, as everything else does.
        clean = clean.replace(
            '<div class="bd-sidebar-primary bd-sidebar',
            '<div role="navigation" aria-label="Book" class="bd-sidebar-primary bd-sidebar',
        )
        if clean != source:
            page.write_text(clean, encoding="utf-8")
        for equation in re.findall(r"<math.*?</math>", source, flags=re.DOTALL):
            characters.update(html.unescape(re.sub(r"<[^>]*>", "", equation)))
    cut_font(characters, Path(app.outdir) / "_static" / "book-math.woff")


def cut_font(characters: set[str], target: Path):
    """Write the mathematical font with just the characters given, its licence notice kept."""
    wanted = target.with_suffix(".json")
    key = json.dumps(sorted(characters))
    if target.exists() and wanted.exists() and wanted.read_text(encoding="utf-8") == key:
        return
    settings = subset.Options()
    settings.flavor = "woff"
    settings.layout_features = ["*"]
    settings.name_IDs = ["*"]
    settings.with_zopfli = False
    font = subset.load_font(str(FONT), settings)
    cutter = subset.Subsetter(settings)
    # The radical stands in no text: MathML draws it itself.
    cutter.populate(text="".join(sorted(characters)) + "abcxyz0123456789√")
    cutter.subset(font)
    subset.save_font(font, str(target), settings)
    wanted.write_text(key, encoding="utf-8")


def setup(app):
    """Register with Sphinx."""
    if not FONT.is_file():
        raise ExtensionError(f"the font of the equations is missing: {FONT}")
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("config-inited", drop_thebe_listeners)
    app.connect("config-inited", add_buttons)
    app.connect("html-page-context", clean_context, priority=900)
    app.connect("build-finished", finish)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
