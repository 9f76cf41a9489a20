"""Configuration of Sphinx: MyST reads Markdown, Furo renders it."""

from __future__ import annotations

project = "batchscribe"
author = "The batchscribe authors"
project_copyright = author
extensions = ["myst_parser"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = "batchscribe"
html_extra_path = ["../build/docs-extra"]
html_static_path = ["_static"]
html_css_files = ["pages.css"]
