"""How every page is made: jinja2 templates beside this file, which fill the blocks of base.html."""

from __future__ import annotations

from importlib import resources
from typing import Any

from modalign.report import wording

FILTERS = (
    wording.percent,
    wording.points,
    wording.ends,
    wording.tolerated,
    wording.number,
    wording.signed,
    wording.duration,
)


def render(name: str, **values: Any) -> str:
    """A page as text; everything in it is escaped, and a value that the template needs and is not given is an error.

    Args:
        name: of the template, such as "page.html".
        values: what it shows.
    """
    import jinja2

    package = resources.files("modalign.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: package.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {shown.__name__: shown for shown in FILTERS}
    return environment.get_template(name).render(**values)
