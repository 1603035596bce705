"""Sphinx configuration."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent

project = "bcnmf_sc"
author = "bcnmf_sc developers"
copyright = f"2026, {author}"
release = installed_version("bcnmf-sc")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    "sphinxext.opengraph",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
default_role = "literal"
nitpicky = True

# Notebooks live beside the package and carry their outputs; Sphinx reads only what is below docs/.
tutorials = HERE / "tutorials"
shutil.rmtree(tutorials, ignore_errors=True)
tutorials.mkdir()
notebooks = sorted((HERE.parent / "tutorials").glob("*.ipynb"), key=lambda path: (path.stem != "quickstart", path.stem))
for notebook in notebooks:
    shutil.copyfile(notebook, tutorials / notebook.name)
first = ("quickstart", "kang")  # where to begin; the others by name
notebooks.sort(key=lambda path: (first.index(path.stem) if path.stem in first else len(first), path.stem))
entries = "\n".join(notebook.stem for notebook in notebooks)
page = f"# Tutorials\n\n```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
(tutorials / "index.md").write_text(page, encoding="utf-8")
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
# "Returns" lists the fields a call writes: prose, not types
napoleon_custom_sections = ["Returns"]
typehints_defaults = "braces"
typehints_document_rtype = False
always_use_bars_union = True

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# Links into other projects need the network, so a build on any machine does without unless asked.
link_out = os.environ.get("READTHEDOCS") == "True" or bool(os.environ.get("BCNMF_SC_DOCS_INTERSPHINX"))
linked = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "mudata": "https://mudata.readthedocs.io/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
intersphinx_mapping = {name: (url, None) for name, url in linked.items()} if link_out else {}
# Types of others, by the public or private path they report. References inside bcnmf_sc stay checked.
nitpick_ignore_regex = [("py:.*", r"(?!bcnmf_sc)[\w.]+"), ("py:.*", r"bcnmf_sc(\.\w+)*\._.*")]

html_theme = "sphinx_book_theme"
html_title = "bcnmf_sc"
html_theme_options = {"show_toc_level": 2}
ogp_site_name = "bcnmf_sc"
ogp_site_url = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
