"""Split-VQ-VAE: pieces, nearest codes, moving means, straight-through gradients, recipes. Networks are tiny and untrained, data real digits."""

from dataclasses import dataclass
from math import ceil, log

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from defend.chain import Chain
from defend.defenses import vq
from defend.defenses.corrupt import (
    attacked,
    corrupted,
    pattern,
    recognised,
    share,
    slope,
    surrogates,
)
from defend.defenses.split_vqvae import RestorerRecipe, SplitVQVAE, Trainee, join, split
from defend.defenses.vq import Codec, MovingMeans, nearest, spread
from defend.errors import BadParameter, Mismatch
from defend.noise import Noise
from defend.training.data import Arrays
from defend.weights.header import Header, save_weights

SMALL = {"weights": "untrained", "codes": 20, "embedding_dim": 6, "hidden": 8}
SHAPES = [
    (size, grid, c)
    for size in (28, 32, 64)
    for grid in (1, 2, 4, 7)
    for c in (1, 3)
    if size % grid == 0
]
TINY = {"size": 8, "grid": 2, **SMALL}


@pytest.fixture(scope="module")
def digits():
    """Real digits: x (512, 1, 8, 8), y."""
    data = load_digits()
    return torch.tensor(data.images[:512, None] / 16, dtype=torch.float32), torch.tensor(
        data.target[:512]
    )


def noise(n, name="x"):
    return Noise.of(0, torch.arange(n)).fork(name)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "grid", "channels"), SHAPES)
def test_every_grid_on_every_size(size, grid, channels):
    p = SplitVQVAE(size=size, grid=grid, channels=channels, **SMALL)
    x = p.example(3)
    out = p.purified(x)
    assert out.shape == x.shape and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize(
    ("side", "codes"), [(28, 7), (14, 4), (7, 2), (4, 1), (16, 4), (1, 1), (5, 2)]
)
def test_every_pixel_is_coded_and_decoded(side, codes):
    """A code for four by four pixels, rounded up; every input pixel matters, and no output pixel is a constant."""
    net = Codec(1, 16, 1, 6, 20)
    x = random(4, 1, side, side, seed=1).sigmoid().requires_grad_()
    z = net.encode(x)
    assert z.shape == (4, 6, codes, codes)
    used = torch.autograd.grad((z * random(*z.shape)).sum(), x)[0].abs().amax(0)
    assert (used > 0).all(), "pixels that no code sees"
    out = net.decode(random(64, 6, codes, codes), side, side)
    assert (out.std(0) > 1e-4).all(), "output pixels that no code reaches"


@pytest.mark.parametrize("grid", [1, 2, 4, 7])
def test_pieces_and_back(grid):
    x = random(3, 2, 28, 28)
    pieces = split(x, grid)
    assert torch.equal(join(pieces, grid), x)
    step = 28 // grid
    for i, row, col in [(0, 0, 0), (1, grid - 1, 0), (2, 0, grid - 1), (2, grid - 1, grid - 1)]:
        want = x[i, :, row * step : (row + 1) * step, col * step : (col + 1) * step]
        assert torch.equal(pieces[(i * grid + row) * grid + col], want)


def test_one_batch_of_quadrants_is_four_passes():
    p = SplitVQVAE(**SMALL)
    x = p.example(5)
    passes = torch.cat(
        [torch.cat([p.net(x[:, :, r : r + 14, c : c + 14]) for c in (0, 14)], 3) for r in (0, 14)],
        2,
    )
    assert torch.allclose(p.purified(x), passes, atol=1e-6)


def test_quadrants_do_not_see_each_other():
    p = SplitVQVAE(**SMALL)
    x = p.example(2).requires_grad_()
    (g,) = torch.autograd.grad(p.purified(x)[:, :, :14, :14].sum(), x)
    assert g[:, :, :14, :14].any() and not g[:, :, 14:].any() and not g[:, :, :, 14:].any()


def test_orders_of_a_pipeline_differ():
    quad, whole = SplitVQVAE(grid=2, **SMALL), SplitVQVAE(grid=1, **SMALL)
    x = quad.example(3)
    assert torch.allclose(
        Chain(members=(quad, whole)).purified(x), whole.purified(quad.purified(x)), atol=1e-6
    )
    assert not torch.allclose(
        Chain(members=(quad, whole)).purified(x),
        Chain(members=(whole, quad)).purified(x),
        atol=1e-4,
    )


@pytest.mark.parametrize(("n", "k", "d"), [(1, 2, 1), (7, 3, 2), (1000, 50, 16), (3000, 1000, 64)])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_nearest_is_nearest(n, k, d, shift):
    """In float64 the very number that cdist gives; in float32 a code as near, to rounding, even where all vectors are far from the origin."""
    z, codes = random(n, d, seed=1) + shift, random(k, d, seed=2) + shift
    assert torch.equal(
        nearest(z.double(), codes.double()), torch.cdist(z.double(), codes.double()).argmin(1)
    )
    excess = (z - codes[nearest(z, codes)]).double().norm(dim=1) - torch.cdist(
        z.double(), codes.double()
    ).amin(1)
    assert excess.max() < 1e-3 * (1 + shift)


def test_blocks_do_not_change_the_nearest(monkeypatch):
    z, codes = random(501, 8, seed=1).double(), random(30, 8, seed=2).double()
    want = nearest(z, codes)
    for block in (1, 30, 31, 1000):
        monkeypatch.setattr(vq, "BLOCK", block)
        assert torch.equal(nearest(z, codes), want)


class Largest(TorchDispatchMode):
    """The most bytes that any tensor takes while it watches."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [
            t
            for t in (out if isinstance(out, tuple | list) else [out])
            if isinstance(t, torch.Tensor)
        ]
        self.bytes = max([self.bytes, *(t.untyped_storage().nbytes() for t in made)])
        return out


def largest(f):
    with Largest() as seen:
        f()
    return seen.bytes


def test_search_holds_a_block_of_distances():
    """K = 1000 for 256 images of 7 x 7 codes; the vectors themselves aside, of which cdist makes no copy either."""
    z, codes = random(256 * 49, 4, seed=1), random(1000, 4, seed=2)
    mine, theirs = (
        largest(lambda: nearest(z, codes)),
        largest(lambda: torch.cdist(z, codes).argmin(1)),
    )
    assert theirs >= 256 * 49 * 1000 * 4, "the watch sees no matrix of distances"
    assert mine <= theirs / 4
    assert mine == largest(lambda: nearest(z.repeat(3, 1), codes)), "grows with the batch"


def test_search_ignores_autocast():
    z, codes = random(2000, 16, seed=1), random(500, 16, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = nearest(z, codes)
        low = (codes.square().sum(1) / 2 - z @ codes.T).argmin(1)
    assert torch.equal(within, nearest(z, codes))
    assert not torch.equal(within, low), "these vectors do not tell"


def test_gradient_is_the_decoders_carried_to_the_encoder():
    """For z = E x and u = D' e(z):  d (r . sigmoid(u)) / d x = E' D (r sigmoid'(u)), as if the nearest code were z itself."""
    net = Codec(1, 4, 0, 5, 30)
    net.encoder, net.decoder = (
        nn.Conv2d(1, 5, 4, stride=4, bias=False),
        nn.ConvTranspose2d(5, 1, 4, stride=4, bias=False),
    )
    e, d = net.encoder.weight.view(5, 16), net.decoder.weight.view(5, 16)
    x, r = random(7, 1, 4, 4, seed=3).requires_grad_(), random(7, 16, seed=4)
    out = net(x)
    codes = net.codebook.codes[nearest(x.detach().view(7, 16) @ e.T, net.codebook.codes)]
    u = codes @ d
    assert torch.allclose(out.view(7, 16), u.sigmoid(), atol=1e-6)
    (g,) = torch.autograd.grad((out.view(7, 16) * r).sum(), x)
    assert torch.allclose(g.view(7, 16), (r * u.sigmoid() * (1 - u.sigmoid())) @ d.T @ e, atol=1e-6)


def test_gradient_lives_where_the_background_is_black():
    """A decoder that gives black to eight digits, on images without a stroke: a clamp would have no gradient at all."""
    p = SplitVQVAE(**SMALL)
    p.net.decoder[-1].weight.mul_(0.1)
    p.net.decoder[-1].bias.fill_(-18)
    x = torch.zeros(4, 1, 28, 28, requires_grad=True)
    out = p.purified(x)
    assert out.max() < 1e-7
    (g,) = torch.autograd.grad(out.sum(), x)
    assert g.isfinite().all() and (g.flatten(1).abs().sum(1) > 0).all()


def test_moving_means_follow_the_equations():
    """After t batches that are all the same, N = gamma^t N_0 + (1 - gamma^t) n, and so m; codes are m / N: they come to the means."""
    z, numbers = random(60, 4, seed=1), torch.arange(60) % 3
    codes, means = random(3, 4, seed=2), MovingMeans(3, 4)
    start, first = codes.clone(), torch.full((3,), vq.NEW)
    means.sums.copy_(first[:, None] * codes)
    n, m = torch.full((3,), 20.0), torch.stack([z[numbers == k].sum(0) for k in range(3)])
    for t in range(1, 501):
        means.update(codes, z, numbers, noise(1))
        if t in (1, 2, 500):
            g = vq.DECAY**t
            assert torch.allclose(means.counts, g * first + (1 - g) * n, rtol=1e-4)
            assert torch.allclose(
                codes,
                (g * first[:, None] * start + (1 - g) * m) / (g * first + (1 - g) * n)[:, None],
                atol=1e-4,
            )
    assert torch.allclose(codes, m / 20, atol=1e-3)


def test_dead_codes_move_to_the_data_and_others_stay():
    """Data in two places; of four codes, two are far from both. They die after ln(DEAD / NEW) / ln(gamma) batches without a vector."""
    z = torch.cat([random(50, 2, seed=1) * 0.1 + 5, random(50, 2, seed=2) * 0.1 - 5])
    codes, means = (
        torch.tensor([[5.0, 5.0], [-5.0, -5.0], [90.0, 90.0], [-90.0, 90.0]]),
        MovingMeans(4, 2),
    )
    means.sums.copy_(vq.NEW * codes)
    alone = ceil(log(vq.DEAD / vq.NEW) / log(vq.DECAY))
    for _ in range(alone - 1):
        means.update(codes, z, nearest(z, codes), noise(7))
    assert codes[2:].abs().min() > 80, "revived too early"
    means.update(codes, z, nearest(z, codes), noise(7))
    assert codes[2:].abs().max() < 10, "dead codes stay where nothing is"
    assert torch.allclose(codes[:2], torch.tensor([[5.0, 5.0], [-5.0, -5.0]]), atol=0.1)
    for _ in range(300):
        means.update(codes, z, nearest(z, codes), noise(7))
    assert len(nearest(z, codes).unique()) == 4, "a code that was revived is not used"


def test_seeding_prefers_what_is_far_and_survives_equal_vectors():
    z = torch.zeros(1000, 3)
    z[::100] = 1
    assert 0.99 < spread(z, torch.zeros(3), 10000, noise(64)).mean() < 1, (
        "one in a hundred is far: all draws but one in a thousand should hit it"
    )
    assert torch.equal(spread(torch.ones(10, 3), torch.ones(3), 4, noise(1)), torch.ones(4, 3))


def test_patterns_are_bounded_and_of_many_lengths():
    x = torch.zeros(256, 1, 28, 28)
    s = pattern(x, noise(256))
    assert s.min() >= -1 and s.max() <= 1
    neighbours = (s[..., 1:].sign() * s[..., :-1].sign()).mean((1, 2, 3))
    assert neighbours.min() < 0.2 and neighbours.max() > 0.7, (
        "signs are all correlated, or all independent"
    )
    signs = (s.abs() > 0.99).float().mean((1, 2, 3))
    assert signs.min() < 0.4 and signs.max() > 0.95, "all patterns are signs, or none is"


def test_half_of_the_patterns_lead_to_another_image(digits):
    x = digits[0][:256]
    way = (pattern(x, noise(256)) * (x.roll(1, 0) - x)).mean((1, 2, 3)) / (
        x.roll(1, 0) - x
    ).abs().mean((1, 2, 3))
    assert 0.3 < (way > 0.5).float().mean() < 0.6 and (way < 0.2).float().mean() > 0.3


def test_perturbations_stay_within_the_amplitude(digits):
    x, y = digits[0][:64], digits[1][:64]
    nets = surrogates(1, 8, 10)
    for out in (corrupted(x, 0.3, noise(64)), attacked(nets, x, y, 0.3, noise(64))):
        assert out.min() >= 0 and out.max() <= 1 and not out.requires_grad
        reach = (out - x).abs().amax((1, 2, 3))
        assert reach.max() <= 0.3 + 1e-6 and reach.min() < 0.06 and reach.mean() > 0.1


def test_large_shares_are_more_frequent():
    """Density 2 s: the mean is 2/3, and the square of a share is uniform."""
    s = share(torch.zeros(20_000, 1, 1, 1), noise(20_000)).flatten().double()
    assert (
        abs(s.mean() - 2 / 3) < 0.01
        and (s.square().sort().values - torch.linspace(0, 1, 20_000)).abs().max() < 0.02
    )


def test_what_surrogates_read_teaches_the_images_alone(digits):
    x, y = digits[0][:32].clone().requires_grad_(), digits[1][:32]
    nets = surrogates(1, 8, 10).train()
    kept = {k: t.clone() for k, t in nets.state_dict().items()}
    recognised(nets, x, y).backward()
    assert (
        x.grad.abs().sum() > 0 and all(p.grad is None for p in nets.parameters()) and nets.training
    )
    assert all(torch.equal(t, kept[k]) for k, t in nets.state_dict().items()), (
        "running statistics moved"
    )


def test_training_starts_at_the_images_brightness(digits):
    purifier = SplitVQVAE(weights="untrained", grid=1, codes=64, hidden=16, size=8)
    trainee = Trainee(purifier, RestorerRecipe())
    before = (purifier.net(digits[0]).mean() - digits[0].mean()).abs()
    trainee.start(digits[0], 0)
    after = (purifier.net(digits[0]).mean() - digits[0].mean()).abs()
    assert after < 0.02 < before


def test_surrogates_are_attacked_and_left_alone(digits):
    x, y = digits[0][:128], digits[1][:128]
    for net in surrogates(1, 8, 10):
        net.train()
        kept = {k: t.clone() for k, t in net.state_dict().items()}
        g = slope(net, x, y)
        assert net.training and all(torch.equal(t, kept[k]) for k, t in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
        net.eval()
        losses = [
            nn.functional.cross_entropy(net(x + step * g.sign()), y) for step in (-0.01, 0.0, 0.01)
        ]
        assert losses[0] < losses[1] < losses[2], "the slope does not lead upwards"


@pytest.mark.parametrize(
    ("recipe", "trained_on"),
    [
        ({}, "clean"),
        ({"recipe": "denoise"}, "corrupted"),
        (
            {"recipe": "denoise", "perturbation": "adversarial", "amplitude": 0.25},
            "adversarial(fgsm, Linf 0.25, 3 surrogates)",
        ),
    ],
)
def test_recipes_learn_to_restore(digits, recipe, trained_on):
    """Better than answering every image with the mean image, most codes in use, nothing of the training left in the network."""
    p = SplitVQVAE(**TINY | {"hidden": 16})
    how = {
        "epochs": 15,
        "batch": 32,
        "lr": 1e-2,
        "schedule": "constant",
        "precision": "float32",
        "layout": "contiguous",
    }
    p.fit(*digits, val=digits, progress=False, **how, **recipe)
    x = digits[0]
    assert (p.purified(x) - x).square().mean() < 0.9 * (x.mean(0) - x).square().mean()
    assert len(nearest(vq.as_rows(p.net.encode(split(x, 2))), p.net.codebook.codes).unique()) > 10
    assert p.trained_on == trained_on
    assert {name.partition(".")[0] for name in p.net.state_dict()} == {
        "encoder",
        "codebook",
        "decoder",
    }
    assert not p.net.training and not any(q.requires_grad for q in p.net.parameters())


@dataclass(frozen=True)
class Cut(Arrays):
    """Interrupted at image `at`."""

    at: int = 0

    def to(self, device):
        return self

    def batch(self, start, size, seed):
        if start >= self.at > 0:
            raise KeyboardInterrupt
        return super().batch(start, size, seed)


@pytest.mark.parametrize("recipe", ["paper", "denoise"])
def test_resumed_training_is_undisturbed_training(digits, tmp_path, recipe):
    how = {
        "epochs": 2,
        "batch": 64,
        "recipe": recipe,
        "progress": False,
        "precision": "float32",
        "layout": "contiguous",
    }
    how |= {"perturbation": "adversarial"} if recipe == "denoise" else {}
    whole, parts = SplitVQVAE(**TINY), SplitVQVAE(**TINY)
    whole.fit(*digits, **how)
    with pytest.raises(KeyboardInterrupt):
        parts.fit(Cut(*digits, at=640), resume=tmp_path / "r", save_every=0, **how)
    parts.fit(Cut(*digits), resume=tmp_path / "r", save_every=0, **how)
    for (name, a), b in zip(
        whole.net.state_dict().items(), parts.net.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_weights_bring_their_fields(digits, tmp_path):
    p = SplitVQVAE(**TINY)
    p.fit(digits[0], epochs=1, batch=64, progress=False)
    fields = {k: v for k, v in p.settings.items() if k != "weights"}
    head = Header(
        kind="defense",
        component=p.component,
        dataset="digits",
        fields=fields,
        trained_on=p.trained_on,
        command="",
        seed=0,
        commit="",
    )
    save_weights(tmp_path / "w.safetensors", p.net.state_dict(), head)
    q = SplitVQVAE(weights=str(tmp_path / "w.safetensors"))
    assert (q.grid, q.size, q.codes, q.trained_on) == (2, 8, 20, "clean")
    assert torch.equal(q.purified(digits[0]), p.purified(digits[0]))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grid": 3}, "divisor of size=28"),
        ({"codes": 1}, ">= 2"),
        ({"channels": 2}, "1 or 3"),
        ({"blocks": -1}, ">= 0"),
        ({"hidden": 0}, ">= 1"),
    ],
)
def test_fields_that_cannot_work(fields, words):
    with pytest.raises(BadParameter, match=words):
        SplitVQVAE(**(SMALL | fields))


def test_other_sizes_and_missing_labels_are_errors(digits):
    with pytest.raises(Mismatch, match="size=28"):
        SplitVQVAE(**SMALL).purified(torch.zeros(1, 1, 32, 32))
    with pytest.raises(BadParameter, match="labels"):
        SplitVQVAE(**TINY).fit(digits[0], recipe="denoise", perturbation="adversarial")
    with pytest.raises(BadParameter, match="amplitude"):
        SplitVQVAE(**TINY).fit(*digits, recipe="denoise", amplitud=0.2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"amplitude": 0.2}, "amplitude=0.2.*recipe=denoise alone"),
        ({"perturbation": "adversarial"}, "perturbation='adversarial'.*recipe=denoise alone"),
        (
            {"recipe": "denoise", "recognition": 0.5},
            "recognition=0.5.*perturbation=adversarial alone",
        ),
    ],
)
def test_an_option_that_would_count_for_nothing_is_an_error(digits, options, words):
    with pytest.raises(BadParameter, match=words):
        SplitVQVAE(**TINY).fit(*digits, **options)
