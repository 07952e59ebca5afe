"""Checks of a purifier's settings, card and errors. Each check takes one purifier."""

from __future__ import annotations

import copy
import json
import pickle

import torch

from defend.chain import Chain, members_of
from defend.purifier import Purifier, overridden_methods
from defend.testing.defense_setup import BATCH, purify, with_members
from defend.testing.runner import depends_on_weights, reads_only


@reads_only
def check_pickles_and_copies(p: Purifier) -> None:
    """Fail if a copy, by pickle or by deepcopy, gives another output."""
    expected = purify(p, p.example(BATCH))
    for copied in (pickle.loads(pickle.dumps(p)), copy.deepcopy(p)):
        assert torch.equal(purify(copied, p.example(BATCH)), expected), (
            "a copy by pickle or deepcopy gives another output"
        )


@depends_on_weights
@reads_only
def check_settings_rebuild_it(p: Purifier) -> None:
    """Fail if type(p)(**p.settings) is another purifier. A chain is rebuilt from its members."""
    members = [type(member)(**member.settings) for member in members_of(p)]
    rebuilt = Chain(members=tuple(members)) if isinstance(p, Chain) else members[0]
    assert rebuilt.settings == p.settings, (
        f"expected the settings {p.settings} of type(p)(**p.settings), got {rebuilt.settings}"
    )
    assert torch.equal(purify(rebuilt, p.example(BATCH)), purify(p, p.example(BATCH))), (
        "type(p)(**p.settings) gives another output; make everything that matters a field"
    )


@reads_only
def check_settings_are_json(p: Purifier) -> None:
    """Fail if the settings change on the way through JSON, in which records are written."""
    restored = json.loads(json.dumps(p.settings))
    assert restored == p.settings, (
        f"expected settings that survive JSON, got {restored} of {p.settings}"
    )


@reads_only
def check_card_names_a_source(p: Purifier) -> None:
    """Fail if the card names no source, or the class has no docstring of its own."""
    assert p.card.paper.startswith(("arXiv:", "doi:", "none: ")), (
        f"card.paper: expected arXiv:, doi: or 'none: <reason>', got {p.card.paper!r}"
    )
    doc = (type(p).__doc__ or "").strip()
    # A dataclass without a docstring gets its signature as one.
    assert doc and not doc.startswith(f"{type(p).__name__}("), (
        f"expected a docstring of {type(p).__name__}, got none; say what it does and its source"
    )


@reads_only
def check_rejects_wrong_input(p: Purifier) -> None:
    """Fail if a wrong shape, dtype or number of channels raises no ValueError that names it."""
    x = p.example(1)
    names = [type(member).__name__ for member in with_members(p)]
    for wrong in (x[0], x.to(torch.uint8), torch.cat([x] * 7, 1)):
        try:
            p.forward(wrong)
        except ValueError as e:
            message = str(e)
        else:
            raise AssertionError(
                f"expected a ValueError for {wrong.dtype} {tuple(wrong.shape)}, got an output"
            )
        assert any(name in message for name in names), (
            f"expected an error that names {' or '.join(names)}, got: {message}"
        )


@reads_only
def check_overrides_no_final_method(p: Purifier) -> None:
    """Fail if the purifier overrides a method that is final."""
    names = overridden_methods(p)
    assert not names, f"overrides the final methods {', '.join(names)}; write `purify` instead"
