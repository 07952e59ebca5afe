"""Classifiers against the figures of their papers, and the ways in which weights are found."""

import hashlib
import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from defend.classifiers.convnet import ConvNet
from defend.classifiers.lenet import LeNet
from defend.classifiers.resnet20 import Block, ResNet20
from defend.classifiers.torchvision import TorchvisionModel
from defend.classifiers.wrn16_4 import WideResNet
from defend.errors import BadParameter, BadWeights, DefendError, MissingData
from defend.folding import fold_batch_norms
from defend.loading import load

SHAPES = [
    (ConvNet, {"channels": 1, "size": 8}),
    (ConvNet, {"channels": 1, "size": 28, "width": 8}),
    (ConvNet, {"channels": 3, "size": 33, "classes": 4}),
    (ResNet20, {}),
    (ResNet20, {"channels": 1, "size": 28}),
    (WideResNet, {"classes": 7}),
    (TorchvisionModel, {"model": "squeezenet1_1", "size": 64, "classes": 5}),
]
IDS = [f"{make.__name__}-{i}" for i, (make, _) in enumerate(SHAPES)]


def untrained(make, **fields):
    return make(weights="untrained", **fields)


@pytest.mark.parametrize(("make", "fields"), SHAPES, ids=IDS)
def test_logits_of_the_declared_shape(make, fields):
    classifier = untrained(make, **fields)
    x = classifier.example(3)
    assert x.shape == (3, classifier.channels, classifier.size, classifier.size)
    logits = classifier.network(x)
    assert logits.shape == (3, classifier.classes) and logits.dtype == torch.float32
    assert not torch.allclose(logits.sum(1), torch.ones(3))  # no probabilities


@pytest.mark.parametrize(("make", "fields"), SHAPES, ids=IDS)
def test_pixels_are_normalised_inside(make, fields):
    """The first layer with weights sees values around zero for images in [0, 1]."""
    classifier = untrained(make, **fields)
    seen = []
    first = next(m for m in classifier.net.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    classifier.network(
        torch.stack(
            [
                torch.zeros(classifier.example(1)[0].shape),
                torch.ones(classifier.example(1)[0].shape),
            ]
        )
    )
    assert float(seen[0][0].amax()) < -1.5 and float(seen[0][1].amin()) > 1.5


# The papers' sizes. ResNet-20: 0.27 M (arXiv:1512.03385, table 6); WRN-16-4: 2.7 M (arXiv:1605.07146, table 4).
PARAMETERS = [(ResNet20, 269_722), (WideResNet, 2_748_890), (ConvNet, 141_034)]


@pytest.mark.parametrize(("make", "count"), PARAMETERS)
def test_parameter_counts(make, count):
    assert sum(p.numel() for p in untrained(make).net.parameters()) == count


@pytest.mark.parametrize(
    ("make", "kinds", "layers"),
    [(ResNet20, nn.Conv2d | nn.Linear, 20), (WideResNet, nn.Conv2d, 16)],
)
def test_depth_is_the_number_in_the_name(make, kinds, layers):
    """As the papers count: 6n + 2 with the linear layer; 6N + 4 convolutions, 1x1 shortcuts among them."""
    assert sum(isinstance(m, kinds) for m in untrained(make).net.modules()) == layers


def test_the_shortcut_of_option_a_keeps_the_image_and_adds_black_channels():
    x = torch.rand(2, 4, 6, 6)
    y = Block(4, 8, stride=2).shortcut(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2]) and not y[:, :2].any() and not y[:, 6:].any()


def test_resolutions_halve_twice():
    sizes = []
    classifier = untrained(ResNet20)
    for m in classifier.net.modules():
        if isinstance(m, Block):
            m.register_forward_hook(lambda *a: sizes.append(a[2].shape[1:]))
    classifier.network(classifier.example(1))
    assert sizes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


@pytest.mark.parametrize("name", ["convnet", "resnet20", "wrn16-4"])
def test_an_untrained_network_takes_the_shape_of_the_data(name):
    data = load("digits", "dataset")
    classifier = load(f"{name}:weights=untrained", "classifier", data)
    assert (classifier.channels, classifier.size, classifier.classes) == (1, 8, 10)
    classifier.check_fits(1, 8, 10, "digits")


@pytest.mark.parametrize(("size", "inputs"), [(28, 320), (32, 500), (16, 20)])
def test_lenet_has_the_shapes_of_its_description(size, inputs):
    """28 -> 24 -> 12 -> 8 -> 4 pixels a side: 20 x 4 x 4 = 320 numbers before the hidden layer."""
    net = untrained(LeNet, channels=1, size=size).net
    assert net[8].in_features == inputs and net[8].out_features == 50
    with pytest.raises(BadParameter, match="size=15"):
        untrained(LeNet, channels=1, size=15)


def test_the_same_spec_builds_the_same_network():
    a, b = (untrained(ResNet20).net.state_dict() for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_width_is_checked():
    with pytest.raises(BadParameter, match="width=0"):
        untrained(ConvNet, width=0)


# Batch norms folded into the convolutions before them.


def with_statistics(classifier):
    """As if trained: nothing in a batch norm is 0 or 1."""
    g = torch.Generator().manual_seed(3)
    for m in classifier.net.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low in (
                (m.running_mean, -0.5),
                (m.running_var, 0.5),
                (m.weight.data, 0.5),
                (m.bias.data, -0.5),
            ):
                t.copy_(low + torch.rand(t.shape, generator=g))
    return classifier


def logits_and_slope(net, x):
    x = x.clone().requires_grad_()
    logits = net(x)
    return logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]


@pytest.mark.parametrize(("make", "fields"), SHAPES, ids=IDS)
def test_a_folded_network_is_the_same_function(make, fields):
    """In float64: in float32 a rounding may step over the kink of a ReLU."""
    classifier = with_statistics(untrained(make, **fields))
    net, x = classifier.net.double(), classifier.example(4).double()
    for a, b in zip(logits_and_slope(fold_batch_norms(net, x), x), logits_and_slope(net, x), strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm()


@pytest.mark.parametrize(("make", "left"), [(ConvNet, 0), (ResNet20, 0), (WideResNet, 6)])
def test_only_batch_norms_that_follow_no_convolution_are_left(make, left):
    """WRN-16-4 norms come before the convolutions (arXiv:1605.07146, figure 1): the first follows the first convolution, those of five more
    blocks follow a sum, and so does the last."""
    classifier = untrained(make)
    classifier.run_as("float32", "contiguous")
    assert sum(isinstance(m, nn.BatchNorm2d) for m in classifier.net.modules()) == left


class Rounded(torch.autograd.Function):
    """Straight through: a trace keeps what it computes, and forgets its backward."""

    @staticmethod
    def forward(ctx, x):
        return x.mul(64).round().div(64)

    @staticmethod
    def backward(ctx, g):
        return g


def rounded_under_no_grad(x):
    with torch.no_grad():
        d = x.mul(64).round().div(64) - x
    return x + d


PYTHON = {
    "plain": lambda x: x,
    "branch": lambda x: 2 * x if x.mean() > 0.5 else x,  # a trace cannot follow it
    "noise": lambda x: x * float(torch.rand(())),  # a trace fixes one value
    "custom backward": Rounded.apply,
    "no_grad": rounded_under_no_grad,
}


class Odd(nn.Module):
    """Something in Python before a convolution and its norm."""

    def __init__(self, first):
        super().__init__()
        self.first, self.conv, self.bn = first, nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.bn(self.conv(self.first(x))).flatten(1)


@pytest.mark.parametrize("python", PYTHON)
def test_what_a_trace_changes_stays_as_it_is(python):
    net = Odd(PYTHON[python]).eval()
    assert (fold_batch_norms(net, torch.rand(2, 1, 8, 8)) is net) == (python != "plain")


def test_where_nothing_is_folded_nothing_is_replaced():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert fold_batch_norms(net, torch.rand(2, 1, 8, 8)) is net


# torchvision: whose weights, and from where.

MODEL = "squeezenet1_1"


@pytest.fixture
def state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return torchvision.models.get_model(MODEL, weights=None, num_classes=5).state_dict()


def torchvision_spec(weights, classes=5, model=MODEL):
    return load(
        f"torchvision:model={model},size=64,classes={classes},weights={json.dumps(str(weights))}",
        "classifier",
    )


def written(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(
            state
            if path.suffix == ".pt"
            else {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
            path,
        )
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_local_file_fills_the_network(state, suffix, tmp_path):
    path = written(state, tmp_path / f"w{suffix}")
    classifier = torchvision_spec(path)
    plain = torchvision.models.get_model(MODEL, weights=None, num_classes=5).eval()
    plain.load_state_dict(state)
    x = classifier.example(2)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    torch.testing.assert_close(classifier.network(x), plain((x - mean) / std))
    assert classifier.weights_sha256 == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert classifier.trained_on == "unknown"


def test_weights_in_the_hubs_cache_are_taken_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    full = torchvision.models.get_model(MODEL, weights=None).state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(
        full, folder / torchvision.models.get_model_weights(MODEL)["DEFAULT"].url.rpartition("/")[2]
    )
    by_default = load(f"torchvision:model={MODEL},size=64", "classifier")
    by_name = torchvision_spec("IMAGENET1K_V1", classes=1000)
    assert torch.equal(
        by_default.net.state_dict()["1.features.0.weight"], full["features.0.weight"]
    )
    assert by_default.trained_on == "clean" and by_default.weights_sha256.keys() == {"DEFAULT"}
    assert set(by_default.weights_sha256.values()) == set(by_name.weights_sha256.values())


def test_without_network_the_error_names_path_and_address(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for proxy in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        MissingData,
        match=r"checkpoints.*could not be downloaded.*https://download\.pytorch\.org/.*weights=FILE",
    ):
        torchvision_spec("DEFAULT", classes=1000)


def test_a_file_of_defend_train_is_read_by_its_header(tmp_path):
    from defend.weights.header import Header, save_weights

    fitted = untrained(TorchvisionModel, model=MODEL, size=64, classes=5)
    fields = {k: v for k, v in fitted.settings.items() if k != "weights"}
    head = Header(
        kind="classifier",
        component="torchvision",
        dataset="d",
        fields=fields,
        trained_on="clean",
        command="defend train",
        seed=0,
        commit="",
    )
    save_weights(tmp_path / "w.safetensors", fitted.net.state_dict(), head)
    classifier = load(
        f'torchvision:weights="{tmp_path / "w.safetensors"}",model={MODEL}', "classifier"
    )
    assert (classifier.size, classifier.classes, classifier.trained_on) == (64, 5, "clean")
    x = classifier.example(2)
    assert torch.equal(classifier.network(x), fitted.network(x))


WRONG = {
    "model": (
        lambda _: torchvision_spec("untrained", model="resnet51"),
        BadParameter,
        "Did you mean .*resnet50",
    ),
    "detector": (
        lambda _: torchvision_spec("untrained", model="fasterrcnn_resnet50_fpn"),
        BadParameter,
        "no classification model",
    ),
    "weights": (lambda _: torchvision_spec("IMAGENET1K_V9"), BadWeights, "IMAGENET1K_V1"),
    "classes": (
        lambda p: torchvision_spec(
            written(torchvision.models.get_model(MODEL, weights=None).state_dict(), p / "w.pt")
        ),
        BadWeights,
        "classes=",
    ),
    "damaged": (
        lambda p: torchvision_spec(damaged(p / "w.pt")),
        BadWeights,
        "not a file of tensors",
    ),
    "pickled code": (
        lambda p: torchvision_spec(pickled(p / "w.pt")),
        BadWeights,
        "not a file of tensors",
    ),
    "grey": (
        lambda _: untrained(TorchvisionModel, model=MODEL, channels=1),
        BadParameter,
        "colour",
    ),
}


def damaged(path):
    path.write_bytes(b"\x80\x02 no state dict")
    return path


def pickled(path):
    torch.save({"a": nn.Linear(1, 1)}, path)
    return path


@pytest.mark.parametrize(("do", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_torchvision_specs(do, error, message, tmp_path):
    assert issubclass(error, DefendError)
    with pytest.raises(error, match=message):
        do(tmp_path)
