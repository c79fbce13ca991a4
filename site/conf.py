"""Sphinx's settings; `python -m companion.site.build` puts this file and the pages together."""

from companion.site.docstrings import processed

project = "Noise Awareness Guidance"
author = "the companion's contributors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["static", "vendor"]

html_theme = "furo"
html_title = "Noise Awareness Guidance"
html_static_path = ["static"]
html_extra_path = ["extra"]  # files of the repository that pages link to
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_favicon = "static/icon.svg"
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}
mathjax_path = "vendor/tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}

nb_execution_mode = "off"  # pages come with their outputs
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "mailto": None, "file-of": "{{path}}"}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "ignore-module-all": True}
python_maximum_signature_line_length = 88
add_module_names = False
copybutton_exclude = ".linenos, .gp, .go"


def _docstring(app, what, name, obj, options, lines):
    lines[:] = processed(lines)


def setup(app):
    app.connect("autodoc-process-docstring", _docstring)
