"""Pages that are complete in themselves: rendered by Jinja2, escaped, written by rename.

Every template includes the same style sheet and content security policy, which lets a page load
nothing and run no script. Plots are drawn as SVG when the page is made (`report_charts`): they
follow the reader's colours and paper, and need neither a network nor a megabyte of Vega.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from flows import report_numbers
from lineage.story import visible
from lineage.workspace import commit_bytes


def write_page(template: str, path: Path, context: dict[str, Any]) -> Path:
    """Render a template of this folder to ``path``, by rename, and return ``path``.

    All texts are escaped; control and direction characters are shown instead of obeyed.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "number", "percent", "seconds", "moment"):
        environment.filters[name] = getattr(report_numbers, name)
    page = environment.get_template(template).render(context)
    commit_bytes(path, page.encode(errors="backslashreplace"))
    return path


def _shown(value: Any) -> Any:
    """Make texts from data visible on their way into the page; Jinja2 escapes them after this."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
