"""The pages' templates, which share one style."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined


def templates() -> Environment:
    """Every text of a plugin is escaped; a name that a page does not get is an error."""
    loader = FunctionLoader(
        lambda name: files("defend.results").joinpath("templates", name).read_text(encoding="utf-8")
    )
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
