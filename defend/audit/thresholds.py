"""Every threshold of the audit, with where it comes from. Misses and false alarms in the documents are those of this table: whoever
changes a number measures them again (docs/results/audit_thresholds.py)."""

from __future__ import annotations

from typing import NamedTuple


class Threshold(NamedTuple):
    value: float
    source: str


_OURS = "ours; docs/results/audit_thresholds.py measures it on tests/masked.py"

THRESHOLDS: dict[str, Threshold] = {
    "gap": Threshold(
        2.0, "ours: points that another attack must break more than the declared gradient's best"
    ),
    "alpha": Threshold(0.05, "convention; Holm over the attacks (Holm 1979)"),
    "converged": Threshold(0.5, "ours: points that more steps may still break"),
    "eot": Threshold(1.0, "ours: points that twice the copies may still break"),
    "unbounded": Threshold(
        0.01, "Carlini et al., arXiv:1902.06705, section 5: an unbounded attack leaves nothing"
    ),
    "rounding": Threshold(1.0, "ours: points by which 8-bit images may differ"),
    "zero": Threshold(0.01, _OURS + "; AutoAttack (arXiv:2003.01690) flags the first image"),
    "vanishing": Threshold(1e-3, _OURS),
    "exploding": Threshold(1e3, _OURS),
    "dead": Threshold(0.25, _OURS),
    "cosine": Threshold(0.05, _OURS),
    "replayed_cosine": Threshold(
        0.99, "ours: a deterministic gradient is the same twice, up to rounding"
    ),
    "frozen": Threshold(
        0.5,
        "ours: noise that clips pixels leaves them dead when frozen, so that some images may stand",
    ),
    "slope": Threshold(0.2, _OURS),
    "moved": Threshold(
        1e-3, "ours: a pixel of the 1/255 that an 8-bit image can show, four times over"
    ),
    "state": Threshold(0.05, "ours: images that rounding alone may move across an edge"),
    "rekeyed": Threshold(0.01, "ours: level of the paired test"),
    "square": Threshold(0.2, "AutoAttack's flag, flags_doc.md of arXiv:2003.01690"),
    "unstable": Threshold(0.5, _OURS + "; the indicator is Pintor et al., arXiv:2106.09947"),
    "incomplete": Threshold(0.05, "Pintor et al., arXiv:2106.09947, section 3"),
    "indicator": Threshold(0.1, _OURS + ": share of images"),
    "active": Threshold(0.8, _OURS + "; Zimmermann et al., arXiv:2206.13991, name no mark"),
    "search": Threshold(
        0.5,
        "Zimmermann et al., arXiv:2206.13991: random search must fail where the attack succeeds; the mark is ours",
    ),
}
