"""Square Attack: Andriushchenko, Croce, Flammarion, Hein, "a query-efficient black-box adversarial attack via random search", arXiv:1912.00049."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from defend.attack import Attack, AttackCard
from defend.attacks.active_set import Rows, looks_are_free, mean_margin, while_standing
from defend.losses import margin
from defend.noise import Noise
from defend.norms import per_image, signs
from defend.target import Target

HALVINGS = (
    10,
    50,
    200,
    500,
    1000,
    2000,
    4000,
    6000,
    8000,
)  # of p, after these of 10,000 queries: as in the published code
BLOCK = 50  # steps whose random numbers are drawn at once


@dataclass
class Search(Rows):
    """One image's random search."""

    results = ("best", "least", "wrong_after")
    x: Tensor
    y: Tensor
    best: Tensor  # the incumbent
    least: Tensor  # (b,): its margin
    wrong_after: Tensor  # (b,) int64: queries until first wrong, -1 where never
    noise: Noise
    random: Tensor  # (b, BLOCK, 4 + 1 + c) in [0, 1): two windows' places, orientation, signs


class Square(Attack):
    """One square of side s = sqrt(p h w) changes at a time, and stays where the margin falls (Algorithm 1).

    L-inf (Algorithm 2): each channel of the square becomes x + eps or x - eps; it begins with vertical stripes of these. L2 (Algorithm
    3): the budget of one window goes into another, as two bumps of opposite signs; it begins with a grid of them, and the whole has norm
    eps before it is clipped. p begins at p_init and is halved along the published schedule, stretched from 10,000 to `queries`.

    An L-inf square that would change nothing gets other signs, as in the paper's own code: with one channel, late in the search, every
    second one. AutoAttack's code asks it all the same (redraw=False), and on a CPU we don't: the query counts, its answer is known.
    A deterministic target is asked once for each step. Of a stochastic one, incumbent and candidate are measured anew at every step, over
    `target.eot` draws each. Notes `wrong_after`: after how many queries an image was first wrong, -1 where never.
    """

    card = AttackCard(paper="arXiv:1912.00049", access="scores", norms=("Linf", "L2"))
    queries: int = 5000  # the start is the first; of a stochastic target: steps
    p_init: float = 0.8  # the share of the pixels in the first squares
    rescale: bool = (
        True  # false: p as if there were 10,000 queries; AutoAttack runs its 5,000 like that
    )
    redraw: bool = True  # L-inf; false: squares may change nothing

    def validate(self) -> None:
        self.require(self.queries >= 1, "queries", ">= 1")
        self.require(0 < self.p_init <= 1, "p_init", "above 0 and at most 1, a share of the pixels")

    def run(self, target: Target, x: Tensor, y: Tensor, eps: float, noise: Noise) -> Tensor:
        first = stripes(x, eps, noise) if self.norm == "Linf" else bumps(x, eps, noise)
        least = mean_margin(target, first, y)
        search = Search(
            target,
            least < 0,
            x,
            y,
            first,
            least,
            torch.where(least < 0, 1, -1),
            noise,
            x.new_empty(len(x), 0),
        )
        search = while_standing(search, partial(self._step, eps=eps), range(1, self.queries))
        target.note("wrong_after", search.wrong_after)
        return search.best

    def _step(self, s: Search, k: int, eps: float) -> None:
        """Query k + 1."""
        at = (k - 1) % BLOCK
        if at == 0:
            s.random = s.noise.fork(f"steps from {k}").uniform(
                s.x.new_empty(len(s.x), BLOCK, 5 + s.x.shape[1])
            )
        change = window if self.norm == "L2" else redrawn if self.redraw else square
        candidate = change(s.x, s.best, eps, self.side(k - 1, s.x), s.random[:, at])
        asked, least = self._compared(s, candidate)
        better = (asked < least) & ~s.left_alone()
        s.best, s.least = (
            torch.where(per_image(better, s.x), candidate, s.best),
            torch.where(better, asked, least),
        )
        s.fallen = s.least < 0
        s.wrong_after = torch.where(s.fallen & (s.wrong_after < 0), k + 1, s.wrong_after)

    def _compared(self, s: Search, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """The margins of candidate and incumbent."""
        if s.target.deterministic:
            return self._asked(s, candidate), s.least
        return mean_margin(s.target, candidate, s.y), mean_margin(s.target, s.best, s.y)

    def _asked(self, s: Search, candidate: Tensor) -> Tensor:
        if not looks_are_free(candidate):
            return margin(s.target.logits(candidate), s.y)
        new = (candidate != s.best).flatten(1).any(1).nonzero()[:, 0]
        if len(new) == len(candidate):
            return margin(s.target.logits(candidate), s.y)
        return (
            s.least.index_copy(0, new, margin(s.target.take(new).logits(candidate[new]), s.y[new]))
            if len(new)
            else s.least
        )

    def side(self, i: int, x: Tensor) -> int:
        """Pixels. i: steps before this one. L2 windows are odd and of 3 pixels or more, where the image is."""
        i = i * 10_000 // self.queries if self.rescale else i
        p = self.p_init / 2 ** sum(i > h for h in HALVINGS)
        h, w = x.shape[-2:]
        s = round(math.sqrt(p * h * w))
        return min(max(s, 1) if self.norm == "Linf" else max(s, 3) // 2 * 2 + 1, h, w)


def stripes(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """x + eps or x - eps: one sign for each column of each channel."""
    return (x + eps * signs(x[:, :, :1], noise)).clamp(0, 1)


def square(x: Tensor, best: Tensor, eps: float, s: int, random: Tensor) -> Tensor:
    """Algorithm 2. random (b, 4 + 1 + c)."""
    inside = _windows(x, s, random[:, None, :2])[2]
    return _painted(x, best, eps, inside, random[:, 5:] < 0.5)


def redrawn(x: Tensor, best: Tensor, eps: float, s: int, random: Tensor) -> Tensor:
    """Algorithm 2; where it would change nothing, with other signs, each choice as likely."""
    inside, up = _windows(x, s, random[:, None, :2])[2], random[:, 5:] < 0.5
    same = (_painted(x, best, eps, inside, up) == best).flatten(1).all(1)
    return _painted(x, best, eps, inside, up ^ (same[:, None] & some_of(x.shape[1], random[:, 2])))


def some_of(c: int, u: Tensor) -> Tensor:
    """One of the 2^c - 1 choices of some of c channels, by u (b,) in [0, 1): bool (b, c)."""
    few = min(c, 24)  # u has no more digits: further channels go with the last
    number = 1 + (u.double() * (2**few - 1)).long()
    some: Tensor = (number[:, None] >> torch.arange(c, device=u.device).clamp(max=few - 1)) % 2 == 1
    return some


def _painted(x: Tensor, best: Tensor, eps: float, inside: Tensor, up: Tensor) -> Tensor:
    """inside: bool (b, 1, h, w). up: bool (b, c)."""
    return torch.where(
        inside, torch.where(up[:, :, None, None], x + eps, x - eps).clamp(0, 1), best
    )


def window(x: Tensor, best: Tensor, eps: float, s: int, random: Tensor) -> Tensor:
    """Algorithm 3. nu = best - x: window 1 gets a new bump upon its old content, and the budget of window 2, which is emptied."""
    nu = best - x
    r, c, inside = _windows(x, s, random[:, :4].unflatten(1, (2, 2)))
    into, out = inside.split(1, 1)
    bump = eta(s, x.device, x.dtype)
    r, c, turned = r[:, 0, :, None], c[:, 0, None], random[:, 4, None, None] < 0.5
    bump = bump[torch.where(turned, c, r), torch.where(turned, r, c)][
        :, None
    ]  # (b, 1, h, w), right inside window 1
    sign = torch.where(random[:, 5:, None, None] < 0.5, 1.0, -1.0)
    mixed = torch.where(into, sign * bump + _unit(torch.where(into, nu, 0), (-2, -1)), 0)
    energy = nu.square()
    spent = torch.where(into | out, energy, 0).sum((-2, -1), keepdim=True)  # (b, c, 1, 1)
    unspent = (eps**2 - energy.sum((1, 2, 3), keepdim=True)).clamp(min=0) / x.shape[1]
    nu = torch.where(
        into, _unit(mixed, (-2, -1)) * (spent + unspent).sqrt(), torch.where(out, 0, nu)
    )
    return (x + eps * _unit(nu, (1, 2, 3))).clamp(0, 1)


def bumps(x: Tensor, eps: float, noise: Noise) -> Tensor:
    """A centred grid of windows, 5 by 5 or as many as fit, each with a sign and an orientation of its own."""
    b, c, h, w = x.shape
    s = max(min(h, w) // 5, 1)
    rows, columns = h // s, w // s
    ups = signs(x.new_empty(b, c, rows, columns), noise)
    turned = noise.uniform(x.new_empty(b, 1, rows, columns)) < 0.5
    bump = eta(s, x.device, x.dtype)
    grid = torch.where(
        _each(turned, s), bump.T.repeat(rows, columns), bump.repeat(rows, columns)
    ) * _each(ups, s)
    nu, top, left = torch.zeros_like(x), (h - rows * s) // 2, (w - columns * s) // 2
    nu[:, :, top : top + rows * s, left : left + columns * s] = grid
    return (x + eps * _unit(nu, (1, 2, 3))).clamp(0, 1)


@cache
def eta(s: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Two bumps of opposite signs, one above the other, of norm 1 together: (s, s). Section 3.3."""
    both = torch.cat([_bump(s // 2, s), -_bump(s - s // 2, s)])
    return _unit(both, (0, 1)).to(device, dtype)


def _bump(h: int, w: int) -> Tensor:
    """(h, w), of norm 1: rings around the centre, the ring at distance d of height sum over j from d to n of 1 / (j + 1)^2."""
    if h == 0:
        return torch.zeros(0, w, dtype=torch.float64)
    n = max(h // 2, w // 2)
    height = torch.arange(n + 1, 0, -1).double().pow(-2).cumsum(0).flip(0)
    d = torch.maximum((torch.arange(h) - h // 2).abs()[:, None], (torch.arange(w) - w // 2).abs())
    bump: Tensor = height[d]
    return _unit(bump, (0, 1))


def _windows(x: Tensor, s: int, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """n windows of side s for each image, at places u (b, n, 2) in [0, 1): rows (b, n, h) and columns (b, n, w) counted from their
    corners, kept to 0..s - 1, and what is inside: bool (b, n, h, w)."""
    h, w = x.shape[-2:]
    r = torch.arange(h, device=x.device) - (u[..., :1] * (h - s + 1)).long()
    c = torch.arange(w, device=x.device) - (u[..., 1:] * (w - s + 1)).long()
    kept_r, kept_c = r.clamp(0, s - 1), c.clamp(0, s - 1)
    return kept_r, kept_c, (kept_r == r)[..., None] & (kept_c == c)[..., None, :]


def _each(cells: Tensor, s: int) -> Tensor:
    """Every cell as s x s pixels."""
    return cells.repeat_interleave(s, -2).repeat_interleave(s, -1)


def _unit(v: Tensor, dims: tuple[int, ...]) -> Tensor:
    """v / |v| over dims; zero stays zero."""
    length: Tensor = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
    return v / length.clamp(min=torch.finfo(v.dtype).tiny)
