"""The templates of the pages, which share one style."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined


def make_environment() -> Environment:
    """Return the environment of the templates.

    Every text of a plugin is escaped; a name that a page does not get is an error.
    """

    def read(name: str) -> str:
        return files("defend.results").joinpath("templates", name).read_text(encoding="utf-8")

    return Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
