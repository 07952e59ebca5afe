"""The warnings that AutoAttack would give: flags_doc.md and checks.py of arXiv:2003.01690."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from defend.auditing.context import Context
from defend.auditing.session import Session
from defend.auditing.thresholds import THRESHOLDS
from defend.auditing.verdict import Check, CheckResult
from defend.losses import dlr_any_classes

OUTPUT_TOLERANCE = 1e-4  # between two normalised outputs, as in AutoAttack
SUM_TOLERANCE = 1e-5  # of a sum of probabilities, as in AutoAttack
FEW_IMAGES = 2  # enough to see whether the purifier calls autograd


def _check_flags(session: Session) -> CheckResult:
    context = session.context
    flags = [
        *_output_flags(context),
        *_dlr_flags(context),
        *_square_flags(session.square_gap),
        *_autograd_flags(context),
    ]
    return CheckResult(
        measured="; ".join(flags) or "no flag", value=float(len(flags)), passed=not flags
    )


def _output_flags(context: Context) -> Iterator[str]:
    """Yield the flags that two draws of the logits raise."""
    x, rows = context.probe_x, context.probe_rows
    logits = context.logits(x, context.noise_of(rows, "flags"))
    second = context.logits(x, context.noise_of(rows, "flags", 1))
    if (_normalise(logits) - _normalise(second)).abs().max() > OUTPUT_TOLERANCE:
        yield "random outputs (use version=rand)" if context.stochastic else "random outputs"
    in_unit_interval = (logits >= 0).all() and (logits <= 1).all()
    if in_unit_interval and ((logits.sum(1) - 1).abs() < SUM_TOLERANCE).all():
        yield "probabilities for logits"


def _normalise(logits: Tensor) -> Tensor:
    norm: Tensor = logits.norm(dim=1, keepdim=True)
    return logits / norm


def _dlr_flags(context: Context) -> Iterator[str]:
    target = context.target(context.probe_rows, stream="flags")
    gradient, _, _ = target.gradient(context.probe_x, context.probe_y, dlr_any_classes)
    if (gradient.flatten(1).abs().amax(1) == 0).any():
        yield "zero gradients of DLR"


def _square_flags(gap: float | None) -> Iterator[str]:
    if gap is not None and 100 * gap > THRESHOLDS.square.value:
        yield f"Square lowers it by {100 * gap:.1f} points"


def _autograd_flags(context: Context) -> Iterator[str]:
    rows = context.probe_rows[:FEW_IMAGES]
    noise = context.noise_of(rows, "flags")
    if calls_autograd(lambda: context.purify(context.x[rows], noise)):
        yield "autograd inside the purifier"


def calls_autograd(run: Callable[[], object]) -> bool:
    """Return True if `run` calls torch.autograd.grad or Tensor.backward."""
    calls: list[str] = []
    with (
        _recording_calls(torch.autograd, "grad", calls),
        _recording_calls(torch.Tensor, "backward", calls),
    ):
        run()
    return bool(calls)


@contextmanager
def _recording_calls(owner: Any, name: str, calls: list[str]) -> Iterator[None]:
    """Append the name to `calls` at every call of owner.name, which works as before."""
    original = getattr(owner, name)

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    setattr(owner, name, record)
    try:
        yield
    finally:
        setattr(owner, name, original)


CHECK = Check(
    name="AutoAttack's flags",
    question="Would AutoAttack warn?",
    weight="sign",
    threshold="no flag: random outputs, probabilities for logits, zero DLR gradients,"
    f" Square > {THRESHOLDS.square.value:g} points below, autograd inside",
    source="flags_doc.md and checks.py of arXiv:2003.01690",
    advice="Do not trust AutoAttack's accuracy here",
    run=_check_flags,
)
