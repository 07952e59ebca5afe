"""Winograd's convolution is torch's: values, gradients, batches; and networks that change to it."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import defend.winograd
from defend.benchmarks.choose_numerics import choose_numerics
from defend.benchmarks.component_keys import content_hash
from defend.benchmarks.suite import make_suite
from defend.defenses.comdefend import ComDefend
from defend.errors import BadParameter
from defend.layouts import choose_layout
from defend.learned import set_layout
from defend.noise import Noise
from defend.numerics import Candidate, candidates, check_winograd, choose_once
from defend.training.options import LoopOptions
from defend.winograd import (
    CHUNK,
    SMALLEST,
    TILE,
    WinogradConv2d,
    conv2d,
    eligible,
    transform_kernels,
    use_winograd,
)

# Images, channels in and out, height, width.
SHAPES = [
    (1, 1, 1, 5, 5),
    (1, 3, 12, 32, 32),
    (2, 16, 7, 9, 6),
    (3, 64, 64, 7, 7),
    (5, 5, 3, 4, 4),
    (1, 2, 2, 1, 1),
    (21, 4, 4, 8, 8),  # the last group of images is not full
    (1, 3, 2, 37, 41),  # several rows of chunks, of which the last begins earlier
    (1, 1, 1, 3, 4 * CHUNK + 9),  # a row has more tiles than a chunk
    (0, 2, 3, 8, 8),
]


def random_case(shape, dtype=torch.float64):
    """Return x, weight and bias, with the scale of a trained network."""
    b, c, k, h, w = shape
    generator = torch.Generator().manual_seed(sum(shape))
    tensors = [(b, c, h, w), (k, c, 3, 3), (k,)]
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in tensors)
    return tuple(t.to(dtype) for t in (x, weight / (9 * c) ** 0.5, bias))


def with_gradients(convolution, tensors, g):
    """Return the output, and the gradients of <output, g>."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = convolution(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, g)]


def direct(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def largest_error(shape, dtype):
    """Return the largest error of the output and of each gradient, over the largest value."""
    exact = random_case(shape)
    g = torch.randn(direct(*exact).shape, dtype=torch.float64)
    expected = with_gradients(direct, exact, g)
    actual = with_gradients(conv2d, [t.to(dtype) for t in exact], g.to(dtype))
    scales = [max(1.0, float(e.abs().max())) if e.numel() else 1.0 for e in expected]
    errors = [
        float((a - e).abs().max()) / scale if e.numel() else 0.0
        for a, e, scale in zip(actual, expected, scales, strict=True)
    ]
    return max(errors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_a_direct_convolution(shape):
    assert largest_error(shape, torch.float64) < 1e-12
    assert largest_error(shape, torch.float32) < 1e-4


def test_it_works_in_every_memory_order_and_without_a_bias():
    x, weight, bias = random_case((3, 5, 6, 9, 8))
    expected = direct(x, weight, bias)
    flipped = x.flip(0).contiguous(memory_format=torch.channels_last).flip(0)
    last = weight.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(conv2d(flipped, last, bias), expected)
    without = conv2d(x, weight)
    torch.testing.assert_close(without, direct(x, weight, None))
    assert without.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(8, 8), (5, 8), (6, 7)], ids=str)
def test_what_follows_may_write_into_the_output(size):
    """An activation in place gives the gradients of one that is not."""
    tensors = random_case((1, 3, 4, *size))
    g = torch.ones(1, 4, *size, dtype=torch.float64)
    actual = with_gradients(lambda *leaves: F.relu(conv2d(*leaves), inplace=True), tensors, g)
    expected = with_gradients(lambda *leaves: F.relu(direct(*leaves)), tensors, g)
    torch.testing.assert_close(actual, expected)


def test_first_and_second_derivatives():
    leaves = [t.requires_grad_() for t in random_case((2, 2, 3, 5, 6))]
    assert torch.autograd.gradcheck(conv2d, leaves)
    assert torch.autograd.gradgradcheck(conv2d, leaves)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("flipped", lambda weight: weight.transpose(0, 1)),
        ("flipped", lambda weight: weight.transpose(0, 1).flip(2)),
        ("_AT", (*defend.winograd._AT[:3], (0, 1, -1, 8, -8, 0))),
        ("_BT", (*defend.winograd._BT[:5], (0, 4, 0, -5, 0, 0))),
        ("_G", (*defend.winograd._G[:5], (0, 0, 0))),
        ("_patches", lambda padded, _, shape: padded.new_ones(shape)),
    ],
)
def test_a_broken_algorithm_is_noticed(name, broken, monkeypatch):
    monkeypatch.setattr(defend.winograd, name, broken)
    defend.winograd._matrix.cache_clear()
    try:
        assert largest_error((2, 3, 4, 9, 8), torch.float64) > 1e-3
    finally:
        defend.winograd._matrix.cache_clear()


@pytest.fixture
def four_threads():
    """Compute in four threads, which share rows and columns of the matrices, for one test."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def check_batches(convolution, channels, size):
    """Check that an image gives the same output and gradient in every batch, at every place."""
    x, weight, bias = random_case((7, *channels, *size), torch.float32)
    whole = with_gradients(convolution, (x, weight, bias), torch.ones(7, channels[1], *size))
    for rows in ([0], [6, 2], [3, 3, 3], [6, 5, 4, 3, 2, 1, 0]):
        g = torch.ones(len(rows), channels[1], *size)
        part = with_gradients(convolution, (x[rows], weight, bias), g)
        assert torch.equal(part[0], whole[0][rows])
        assert torch.equal(part[1], whole[1][rows])


SIZES = [(32, 32), (16, 16), (8, 8), (28, 28), (5, 5), (40, 24)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [(64, 128), (112, 64), (7, 12), (3, 16)], ids=str)
def test_an_image_does_not_depend_on_its_batch(channels, size):
    check_batches(conv2d, channels, size)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("channels", [(64, 128), (112, 64)], ids=str)
def test_an_image_does_not_depend_on_its_batch_in_four_threads(channels, size):
    check_batches(conv2d, channels, size)


def test_a_dependence_on_the_batch_is_noticed():
    def by_batch(x, weight, bias):
        return conv2d(x, weight, bias) * (1 + 1e-6 * len(x))

    with pytest.raises(AssertionError):
        check_batches(by_batch, (64, 128), (8, 8))


def test_kernels_of_a_changed_weight_are_transformed_anew():
    convolution = nn.Conv2d(SMALLEST, SMALLEST, 3, padding=1)
    x = torch.randn(1, SMALLEST, 8, 8)
    use_winograd(convolution)
    before = convolution(x)
    convolution.weight.data.mul_(2)  # no version counter shows it
    torch.testing.assert_close(
        convolution(x) - convolution.bias[:, None, None],
        2 * (before - convolution.bias[:, None, None]),
    )


def test_transformed_kernels():
    """A kernel that is 1 in its middle is (G e)(G e)^T with e = (0, 1, 0)."""
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    weight[..., 1, 1] = 1
    side = torch.tensor([row[1] for row in defend.winograd._G], dtype=torch.float64)
    expected = (side[:, None] * side).flatten()
    torch.testing.assert_close(transform_kernels(weight).flatten(), expected)


class Subclass(nn.Conv2d):
    """It may compute anything."""


N = SMALLEST
CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(N, N, 3, padding=1), True),
    "no bias": (lambda: nn.Conv2d(N, 2 * N, 3, padding=1, bias=False), True),
    "same": (lambda: nn.Conv2d(N, N, 3, padding="same"), True),
    "few in": (lambda: nn.Conv2d(N - 1, N, 3, padding=1), False),
    "65 channels": (lambda: nn.Conv2d(N + 1, N, 3, padding=1), False),
    "few out": (lambda: nn.Conv2d(N, N - 1, 3, padding=1), False),
    "1x1": (lambda: nn.Conv2d(N, N, 1), False),
    "5x5": (lambda: nn.Conv2d(N, N, 5, padding=1), False),
    "stride": (lambda: nn.Conv2d(N, N, 3, padding=1, stride=2), False),
    "dilation": (lambda: nn.Conv2d(N, N, 3, padding=1, dilation=2), False),
    "groups": (lambda: nn.Conv2d(2 * N, 2 * N, 3, padding=1, groups=2), False),
    "no padding": (lambda: nn.Conv2d(N, N, 3), False),
    "valid": (lambda: nn.Conv2d(N, N, 3, padding="valid"), False),
    "circular": (lambda: nn.Conv2d(N, N, 3, padding=1, padding_mode="circular"), False),
    "transposed": (lambda: nn.ConvTranspose2d(N, N, 3, padding=1), False),
    "1d": (lambda: nn.Conv1d(N, N, 3, padding=1), False),
    "subclass": (lambda: Subclass(N, N, 3, padding=1), False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_eligible_convolutions(name):
    make, expected = CONVOLUTIONS[name]
    convolution = make()
    kind = type(convolution)
    assert eligible(convolution) == [convolution] * expected
    use_winograd(convolution)
    assert type(convolution) is (WinogradConv2d if expected else kind)
    use_winograd(convolution, False)
    assert type(convolution) is kind


def make_network():
    torch.manual_seed(0)
    return ComDefend(weights="untrained", width=128, channels=3)


def test_a_network_changes_and_changes_back():
    """State, hashes and networks stay; the outputs are those of before to the bit."""
    purifier = make_network()
    x = torch.rand(2, 3, 12, 9)
    state, digest = copy.deepcopy(purifier.net.state_dict()), content_hash(purifier)
    networks, before = purifier.networks(), purifier.net.decode(purifier.net.encode(x))
    purifier.run_as("float32", "winograd")
    kinds = [type(module) for module in purifier.net.modules()]
    assert kinds.count(WinogradConv2d) == 4
    assert purifier.networks() == networks and content_hash(purifier) == digest
    assert list(purifier.net.state_dict()) == list(state)
    assert all(torch.equal(t, state[name]) for name, t in purifier.net.state_dict().items())
    twin = copy.deepcopy(purifier)
    fast = purifier.net.encode(x)
    assert torch.equal(twin.net.encode(x), fast)
    twin.run_as("float32", "contiguous")
    assert torch.equal(twin.net.decode(twin.net.encode(x)), before)
    assert torch.equal(purifier.net.encode(x), fast) and not torch.equal(twin.net.encode(x), fast)


def test_other_precisions_are_left_to_torch():
    convolution = nn.Conv2d(N, N, 3, padding=1)
    fast = copy.deepcopy(convolution)
    set_layout(fast, "winograd")
    x = torch.randn(1, N, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fast(x).dtype == torch.bfloat16
    assert fast.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    small = torch.randn(1, N, TILE, TILE)
    assert torch.allclose(fast.float()(small), convolution(small), atol=1e-2)
    assert fast(x[0]).shape == (N, 8, 8)


def test_candidates():
    assert Candidate("float32", "winograd") in candidates("auto", "auto", has_winograd=True)
    for options in (
        candidates("auto", "auto", has_winograd=False),
        candidates("bfloat16", "auto", has_winograd=True),
    ):
        assert all(option.layout != "winograd" for option in options)
    only = [Candidate("float32", "winograd")]
    assert candidates("auto", "winograd", has_winograd=False) == only


@pytest.mark.parametrize(
    ("precision", "device", "is_wrong"),
    [
        ("float32", "cpu", False),
        ("auto", "cpu", False),
        ("bfloat16", "cpu", True),
        ("float32", "cuda", True),
    ],
)
def test_it_is_for_float32_on_a_cpu(precision, device, is_wrong):
    check_winograd(precision, "contiguous", device)
    if not is_wrong:
        check_winograd(precision, "winograd", device)
        return
    with pytest.raises(BadParameter, match="expected precision=float32 and device=cpu"):
        check_winograd(precision, "winograd", device)


def test_a_traced_network_has_no_winograd():
    with pytest.raises(BadParameter, match="layout"):
        LoopOptions(compile=True, layout="winograd")


def test_a_choice_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts = []

    def measure():
        counts.append(1)
        return Candidate("float32", "winograd")

    for threads in (1, 1, 2, 1):
        assert choose_once({"threads": threads}, measure).layout == "winograd"
    assert len(counts) == 2
    for file in (tmp_path / "defend" / "tune").iterdir():
        file.write_text("{")  # a damaged file is measured again
    choose_once({"threads": 1}, measure)
    assert len(counts) == 3


def test_the_choice_for_a_network(tmp_path, monkeypatch):
    """A network of small convolutions is not measured; another one gets what the cache says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "defend" / "tune"
    assert choose_layout(nn.Conv2d(3, 64, 3, padding=1)) == "contiguous"
    assert not folder.exists()
    net = nn.Sequential(nn.Conv2d(3, N, 3), nn.Conv2d(N, N, 3, padding=1))
    layouts = ["contiguous", "channels_last", "winograd"]
    assert choose_layout(net) in layouts
    (file,) = folder.iterdir()
    for layout in layouts:
        file.write_text(json.dumps({"precision": "float32", "layout": layout}))
        assert choose_layout(net) == layout


LATE = "comdefend-cifar10-late"


def count_winograd(purifier):
    return sum(type(module) is WinogradConv2d for module in purifier.net.modules())


def test_loading_takes_what_was_chosen(tmp_path, monkeypatch):
    """A bench or an audit then sets its own layout, and gets its bits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plain = ComDefend(weights=LATE)
    (file,) = (tmp_path / "defend" / "tune").iterdir()
    file.write_text(json.dumps({"precision": "float32", "layout": "winograd"}))
    fast = ComDefend(weights=LATE)
    assert count_winograd(fast) == 8
    assert count_winograd(ComDefend(weights="untrained")) == 0
    monkeypatch.setattr(ComDefend, "any_layout", False)
    assert count_winograd(ComDefend(weights=LATE)) == 0
    x, noise = torch.rand(2, 3, 16, 16), Noise.of(0, torch.arange(2))
    plain.run_as("float32", "contiguous")
    expected = plain.purified(x, noise.again())
    apart = (fast.purified(x, noise.again()) - expected).abs()
    assert float(apart.max()) > 0 and float((apart <= 2 / 255).float().mean()) >= 0.99
    fast.run_as("float32", "contiguous")
    assert torch.equal(fast.purified(x, noise.again()), expected)


def test_a_suite_may_ask_for_it(tmp_path):
    keys = {"dataset": "digits", "classifiers": ["lenet"], "defenses": ["none"], "eps": 0.1}
    suite = make_suite({**keys, "attacks": ["fgsm"], "layout": "winograd"})
    numerics = choose_numerics(suite, torch.device("cpu"), tmp_path, None)
    assert (numerics.precision, numerics.layout) == ("float32", "winograd")
    with pytest.raises(BadParameter, match="layout=winograd"):
        choose_numerics(suite, torch.device("cuda"), tmp_path, None)
