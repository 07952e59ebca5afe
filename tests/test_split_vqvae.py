"""Split-VQ-VAE: pieces, the codec, gradients and fields. Networks are tiny and untrained."""

import pytest
import torch
from tiny_restorers import SMALL, TINY, random_normal, real_digits
from torch import nn

from defend.chain import Chain
from defend.defenses.codec import Codec
from defend.defenses.pieces import join_pieces, split_image
from defend.defenses.split_vqvae import SplitVQVAE
from defend.defenses.vq import nearest_codes
from defend.errors import BadParameter, Mismatch
from defend.weights.header import Header, save_weights

SIZES_AND_GRIDS = [
    (28, 1),
    (28, 2),
    (28, 4),
    (28, 7),
    (32, 1),
    (32, 2),
    (32, 4),
    (64, 1),
    (64, 2),
    (64, 4),
]


@pytest.fixture(scope="module")
def digits():
    return real_digits()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "grid"), SIZES_AND_GRIDS)
def test_every_grid_works_on_every_size(size, grid, channels):
    purifier = SplitVQVAE(size=size, grid=grid, channels=channels, **SMALL)
    x = purifier.example(3)
    out = purifier.purified(x)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize(
    ("side", "codes"), [(28, 7), (14, 4), (7, 2), (4, 1), (16, 4), (1, 1), (5, 2)]
)
def test_every_pixel_is_encoded_and_decoded(side, codes):
    """There is a code for 4 x 4 pixels, rounded up.

    Every input pixel has an influence, and no output pixel is a constant.
    """
    net = Codec(1, 16, 1, 6, 20)
    x = random_normal(4, 1, side, side, seed=1).sigmoid().requires_grad_()
    z = net.encode(x)
    assert z.shape == (4, 6, codes, codes)
    value = (z * random_normal(*z.shape)).sum()
    influence = torch.autograd.grad(value, x)[0].abs().amax(0)
    assert (influence > 0).all(), "some pixels have no influence on any code"
    out = net.decode(random_normal(64, 6, codes, codes), side, side)
    assert (out.std(0) > 1e-4).all(), "some output pixels do not depend on any code"


@pytest.mark.parametrize("grid", [1, 2, 4, 7])
def test_pieces_are_cut_row_by_row_and_joined_again(grid):
    x = random_normal(3, 2, 28, 28)
    pieces = split_image(x, grid)
    assert torch.equal(join_pieces(pieces, grid), x)
    side, last = 28 // grid, grid - 1
    for i, row, column in [(0, 0, 0), (1, last, 0), (2, 0, last), (2, last, last)]:
        top, first = row * side, column * side
        expected = x[i, :, top : top + side, first : first + side]
        assert torch.equal(pieces[(i * grid + row) * grid + column], expected)


def test_one_batch_of_quadrants_equals_four_passes():
    purifier = SplitVQVAE(**SMALL)
    x = purifier.example(5)
    rows = []
    for top in (0, 14):
        row = [purifier.net(x[:, :, top : top + 14, first : first + 14]) for first in (0, 14)]
        rows.append(torch.cat(row, 3))
    assert torch.allclose(purifier.purified(x), torch.cat(rows, 2), atol=1e-6)


def test_quadrants_do_not_influence_each_other():
    purifier = SplitVQVAE(**SMALL)
    x = purifier.example(2).requires_grad_()
    (gradient,) = torch.autograd.grad(purifier.purified(x)[:, :, :14, :14].sum(), x)
    assert gradient[:, :, :14, :14].any()
    assert not gradient[:, :, 14:].any()
    assert not gradient[:, :, :, 14:].any()


def test_the_order_of_a_chain_matters():
    quadrants, full = SplitVQVAE(grid=2, **SMALL), SplitVQVAE(grid=1, **SMALL)
    x = quadrants.example(3)
    chained = Chain(members=(quadrants, full)).purified(x)
    reversed_chain = Chain(members=(full, quadrants)).purified(x)
    assert torch.allclose(chained, full.purified(quadrants.purified(x)), atol=1e-6)
    assert not torch.allclose(chained, reversed_chain, atol=1e-4)


def test_the_gradient_of_the_decoder_is_passed_to_the_encoder():
    """Compare with the closed form for a linear encoder and a linear decoder.

    For z = E x and u = D' e(z): d (r . sigmoid(u)) / d x = E' D (r sigmoid'(u)), as if the nearest
    code were z itself.
    """
    net = Codec(1, 4, 0, 5, 30)
    net.encoder = nn.Conv2d(1, 5, 4, stride=4, bias=False)
    net.decoder = nn.ConvTranspose2d(5, 1, 4, stride=4, bias=False)
    e, d = net.encoder.weight.view(5, 16), net.decoder.weight.view(5, 16)
    x, r = random_normal(7, 1, 4, 4, seed=3).requires_grad_(), random_normal(7, 16, seed=4)
    out = net(x).view(7, 16)
    z = x.detach().view(7, 16) @ e.T
    u = net.codebook.codes[nearest_codes(z, net.codebook.codes)] @ d
    assert torch.allclose(out, u.sigmoid(), atol=1e-6)
    (gradient,) = torch.autograd.grad((out * r).sum(), x)
    expected = (r * u.sigmoid() * (1 - u.sigmoid())) @ d.T @ e
    assert torch.allclose(gradient.view(7, 16), expected, atol=1e-6)


def test_there_is_a_gradient_where_the_background_is_black():
    """The decoder gives black to eight digits: a clamp would have no gradient at all."""
    purifier = SplitVQVAE(**SMALL)
    purifier.net.decoder[-1].weight.mul_(0.1)
    purifier.net.decoder[-1].bias.fill_(-18)
    x = torch.zeros(4, 1, 28, 28, requires_grad=True)
    out = purifier.purified(x)
    assert out.max() < 1e-7
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


def test_fields_come_from_the_header_of_the_weights(digits, tmp_path):
    trained = SplitVQVAE(**TINY)
    trained.fit(digits[0], epochs=1, batch=64, progress=False)
    header = Header(
        kind="defense",
        component=trained.component,
        architecture=trained.component,
        dataset="digits",
        fields={k: v for k, v in trained.settings.items() if k != "weights"},
        trained_on=trained.trained_on[0],
        command="",
        seed=0,
        commit="",
    )
    path = tmp_path / "w.safetensors"
    save_weights(path, trained.net.state_dict(), header)
    loaded = SplitVQVAE(weights=str(path))
    assert (loaded.grid, loaded.size, loaded.codes, str(loaded.trained_on[0])) == (
        2,
        8,
        20,
        "clean",
    )
    assert torch.equal(loaded.purified(digits[0]), trained.purified(digits[0]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": 3}, "divisor of size=28"),
        ({"codes": 1}, ">= 2"),
        ({"channels": 2}, "1 or 3"),
        ({"blocks": -1}, ">= 0"),
        ({"hidden": 0}, ">= 1"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, message):
    with pytest.raises(BadParameter, match=message):
        SplitVQVAE(**(SMALL | fields))


def test_images_of_another_size_are_refused():
    with pytest.raises(Mismatch, match="size=28"):
        SplitVQVAE(**SMALL).purified(torch.zeros(1, 1, 32, 32))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_card_of_an_instance_names_its_own_channels_alone(channels):
    assert SplitVQVAE(channels=channels, **SMALL).card.channels == (channels,)
    assert SplitVQVAE.card.channels == (1, 3)
