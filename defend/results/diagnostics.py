"""Findings that compare cells: signs that an attack failed where the purifier did not succeed. Each is a function on records.

Sources: Athalye, Carlini, Wagner, ICML 2018 (arXiv:1802.00420) section 3.1; Carlini et al., "On Evaluating Adversarial Robustness"
(arXiv:1902.06705) section 5. What beats what: see `beats`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from defend.results.outcomes import Record, bare_attack, frame_of, purifier_of
from defend.results.significance import Beats, best, by_intervals
from defend.spec import parse_single

Pair = tuple[
    Record, Record
]  # (the cell that should be the weaker attack and is the stronger, the other)
Finding = Callable[[Sequence[Record], Beats], list[str]]
_IMAGES = ("dataset", "classifier", "defense", "norm", "n", "split", "seed")
_LEVEL = {"identity": "BPDA"}


def black_box_beats_white_box(records: Sequence[Record], beats: Beats) -> list[str]:
    """Query or transfer against the best adaptive cell at the same eps."""
    return _told(black_box_pairs(records, beats), "black box beats white box")


def oblivious_beats_adaptive(records: Sequence[Record], beats: Beats) -> list[str]:
    """Against the best adaptive cell at the same eps: knowing the purifier should not hurt."""
    return _told(oblivious_pairs(records, beats), "oblivious beats adaptive")


def another_gradient_beats_the_declared(records: Sequence[Record], beats: Beats) -> list[str]:
    """The same attack through the identity or the learned network: the card's word is worth less than a guess."""
    return _told(gradient_pairs(records, beats), "another gradient beats the declared one")


def fewer_steps_beat_more(records: Sequence[Record], beats: Beats) -> list[str]:
    """Adaptive, through the same gradient: one attack with few steps against itself with twice as many or more."""
    return _told(_step_pairs(records, beats), "fewer steps beat more")


def more_eps_helps_the_defender(records: Sequence[Record], beats: Beats) -> list[str]:
    """One attack along eps: a larger ball holds the smaller one, so accuracy cannot honestly grow."""
    lines = []
    for series in _groups(
        [{**r, "attack": bare_attack(r)} for r in records],
        (*_IMAGES, "attack", "knowledge", "gradient", "surrogate", "eot"),
    ):
        along = sorted(series, key=lambda r: float(r["eps"]))
        worse = [(small, large) for small, large in pairwise(along) if beats(small, [large])]
        for small, large in worse[:1]:
            more = f" (and {len(worse) - 1} more steps of eps)" if len(worse) > 1 else ""
            lines.append(
                f"accuracy grows with eps: {name_of(small)}: {_percent(small)} at eps {small['eps_text']}, {_percent(large)} at {large['eps_text']}{more}."
                " The attack fails at the larger eps; the number there is no robustness."
            )
    return lines


FINDINGS: tuple[Finding, ...] = (
    black_box_beats_white_box,
    oblivious_beats_adaptive,
    another_gradient_beats_the_declared,
    fewer_steps_beat_more,
    more_eps_helps_the_defender,
)


def find(records: Sequence[Record], beats: Beats = by_intervals) -> list[str]:
    """One line for each finding, failed cells aside."""
    sound = [r for r in records if r["error"] is None]
    return [line for finding in FINDINGS for line in finding(sound, beats)]


def marked(records: Sequence[Record], beats: Beats = by_intervals) -> list[Record]:
    """With a flag on each cell that a comparison accuses, so that nobody reads its number alone."""
    sound = [r for r in records if r["error"] is None]
    said: dict[int, list[str]] = {}
    for pairs, what in ACCUSING.items():
        for weak, strong in pairs(sound, beats):
            said.setdefault(id(strong), []).append(
                f"{what}: {name_of(weak)} leaves {_percent(weak)}"
            )
    return [
        {**r, "flags": [*r["flags"], *dict.fromkeys(said[id(r)])]} if id(r) in said else r
        for r in records
    ]


def name_of(r: Record) -> str:
    """defense, attack and level: "jpeg, pgd, adaptive BPDA"."""
    return f"{r['defense']}, {way_of(r)}"


def way_of(r: Record) -> str:
    """Attack and level."""
    level = str(r["knowledge"])
    if level == "adaptive" and r["gradient"]:
        level += f" {_LEVEL.get(r['gradient'], r['gradient'])}"
    if r["surrogate"]:
        level += f" from {r['surrogate']}"
    return f"{r['attack']}, {level}"


def white_box(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if r["knowledge"] == "adaptive" and r["access"] == "gradient"]


def black_box_pairs(records: Sequence[Record], beats: Beats) -> Iterator[Pair]:
    for group in _groups(records, (*_IMAGES, "eps")):
        white = white_box(group)
        black = [r for r in group if r["knowledge"] in ("query", "transfer")]
        if white and black:
            yield from ((b, best(white)) for b in black if beats(b, white))


def oblivious_pairs(records: Sequence[Record], beats: Beats) -> Iterator[Pair]:
    for group in _groups(records, (*_IMAGES, "eps")):
        adaptive = white_box(group)  # from an attack without a gradient nothing can be masked
        oblivious = [r for r in group if r["knowledge"] == "oblivious"]
        if adaptive and oblivious and beats(best(oblivious), adaptive):
            yield best(oblivious), best(adaptive)


def gradient_pairs(records: Sequence[Record], beats: Beats) -> Iterator[Pair]:
    for group in _groups(white_box(records), (*_IMAGES, "attack", "eps", "eot")):
        declared = [r for r in group if r["gradient"] == "declared"]
        yield from (
            (r, d) for d in declared for r in group if r["gradient"] != "declared" and beats(r, [d])
        )


def _step_pairs(records: Sequence[Record], beats: Beats) -> Iterator[Pair]:
    for group in _groups(white_box(records), (*_IMAGES, "gradient", "eps", "eot")):
        yield from ((a, b) for a in group for b in group if _shorter(a, b) and beats(a, [b]))


ACCUSING: Mapping[Callable[[Sequence[Record], Beats], Iterator[Pair]], str] = {
    black_box_pairs: "black box beats it",
    oblivious_pairs: "oblivious beats it",
    gradient_pairs: "another gradient beats it",
    _step_pairs: "fewer steps beat it",
}


def _shorter(a: Record, b: Record) -> bool:
    """Is a what b is, but for half of its steps or fewer? By the settings: what was measured is shorter where images were dropped."""
    (one, few, own), (other, many, rest) = _climb(a), _climb(b)
    if one == "fgsm":  # PGD's one step: arXiv:1802.00420, section 3.1
        return other == "pgd" and many > 1 and rest.get("step") is None
    return (one, own) == (other, rest) and 0 < 2 * few <= many


def _climb(r: Record) -> tuple[str, int, dict[str, Any]]:
    """The attack, its steps (0 where it has none) and its other settings."""
    settings = dict(r["settings"]["attack"])
    return parse_single(r["attack"], "attack").name, settings.pop("steps", 0), settings


def _told(pairs: Iterable[Pair], title: str) -> list[str]:
    """One line for each pair of series: the eps with the widest gap, and how many more there are."""
    series: dict[tuple[str, ...], list[Pair]] = {}
    for weak, strong in pairs:
        series.setdefault(
            (*(str(weak[k]) for k in _IMAGES), name_of(weak), strong["attack"]), []
        ).append((weak, strong))
    lines = []
    for same in series.values():
        weak, strong = max(
            same, key=lambda p: float(p[1]["robust_accuracy"] - p[0]["robust_accuracy"])
        )
        more = f" (and at {len(same) - 1} more eps)" if len(same) > 1 else ""
        seen = f"{name_of(weak)} leaves {_percent(weak)} at eps {weak['eps_text']}, {way_of(strong)} {_percent(strong)}{more}"
        lines.append(f"{title}: {seen}: a sign of masked gradients.")
    return lines


def _groups(records: Iterable[Record], keys: Sequence[str]) -> list[list[Record]]:
    def at(r: Record) -> str:
        return repr([*(r[k] for k in keys), *frame_of(r), purifier_of(r)])

    return [list(group) for _, group in groupby(sorted(records, key=at), at)]


def _percent(r: Record) -> str:
    return f"{100 * r['robust_accuracy']:.1f} %"
