"""The site's build (scripts/docs): Sphinx with MyST; the reference is generated from the package itself."""

import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import reference  # noqa: E402  # beside this file

project = "testbed"
author = "the testbed maintainers"
version = release = installed("pytest-testbed")
project_copyright = "MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["generated"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # as docstrings have it: `Lab.impair`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"testbed {version}"
html_copy_source = False
html_show_sphinx = False


def setup(app: Any) -> None:
    """Write the generated parts of the reference before pages are read."""
    app.connect("builder-inited", lambda _app: reference.write(HERE / "generated"))
