"""Checks of an attack's settings, fields and card. Each check takes one attack."""

from __future__ import annotations

import inspect
import json

import torch

from defend.attack import Attack
from defend.testing.attack_setup import (
    EPS,
    attacked,
    half_wrong_labels,
    random_images,
    rebuilt,
)


def check_settings_rebuild_it(attack: Attack) -> None:
    """Fail if type(attack)(**attack.settings) is another attack."""
    copied, x, y = rebuilt(attack), random_images(), half_wrong_labels(random_images())
    assert copied.settings == attack.settings, (
        f"expected the settings {attack.settings} of type(attack)(**attack.settings), "
        f"got {copied.settings}"
    )
    assert torch.equal(attacked(copied, x, y), attacked(attack, x, y)), (
        "type(attack)(**attack.settings) gives another result; make everything that matters a field"
    )


def check_settings_are_json(attack: Attack) -> None:
    """Fail if the settings change on the way through JSON, in which records are written."""
    restored = json.loads(json.dumps(attack.settings))
    assert restored == attack.settings, (
        f"expected settings that survive JSON, got {restored} of {attack.settings}"
    )


def check_fields_are_keyword_only_and_without_eps(attack: Attack) -> None:
    """Fail if a field can be passed by position, or eps is a field."""
    parameters = inspect.signature(type(attack)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert not positional, f"expected keyword-only fields, got {positional} by position"
    assert "eps" not in attack.fields(), "eps must be no field: it comes with each call"


def check_refuses_an_unknown_norm(attack: Attack) -> None:
    """Fail if the card names an unknown norm, or norm='L7' raises no ValueError that names it."""
    assert set(attack.card.norms) <= set(EPS), (
        f"card.norms: expected some of {', '.join(EPS)}, got {attack.card.norms}"
    )
    try:
        rebuilt(attack, norm="L7")
    except ValueError as e:
        message = str(e)
    else:
        raise AssertionError("expected a ValueError for norm='L7', got an attack")
    assert "norm" in message, f"expected an error for norm='L7' that names `norm`, got: {message}"


def check_card_names_a_source(attack: Attack) -> None:
    """Fail if the card names no source, or the class has no docstring."""
    assert attack.card.paper.startswith(("arXiv:", "doi:", "none: ")), (
        f"card.paper: expected arXiv:, doi: or 'none: <reason>', got {attack.card.paper!r}"
    )
    assert (type(attack).__doc__ or "").strip(), (
        f"expected a docstring of {type(attack).__name__}, got none; say what it does"
    )
