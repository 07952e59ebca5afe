"""Classifiers with embeddings: the contract, enrolment, the margin loss, and the kit's checks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_toys import make_noise

from defend.classifier import ClassifierCard, Normalise
from defend.classifiers.convnet import ConvNet
from defend.classifiers.face_resnet import FaceBlock, FaceResNet
from defend.classifiers.facenet import FaceNet, ScaledResidual
from defend.embedding import EmbeddingClassifier, EmbeddingNetwork
from defend.errors import BadParameter
from defend.testing import NotApplicable, embedding_checks, kit
from defend.training.margin import MarginRecipe
from defend.training.recipe import read_recipe


class Tiny(EmbeddingClassifier):
    """One linear layer."""

    card = ClassifierCard(paper="none: made for this test", licence="MIT")
    recipe = MarginRecipe
    channels: int = 1
    size: int = 6
    classes: int = 3
    embedding: int = 8

    def build_embedder(self):
        layer = nn.Linear(self.size**2, self.embedding)
        return nn.Sequential(Normalise((0.5,), (0.25,)), nn.Flatten(), layer)


def tiny(**fields):
    return Tiny(weights="untrained", **fields)


def faces(n=60, people=3, seed=0):
    """Return images (n, 1, 6, 6) of people, who differ in a random pattern, with their labels."""
    patterns = torch.rand(people, 1, 6, 6, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % people
    return (0.7 * patterns[y] + 0.3 * torch.rand(n, 1, 6, 6, generator=generator)), y


# The contract.


def test_the_logits_are_scaled_cosines_with_the_centres():
    c, (x, _) = tiny(scale=10), faces()
    raw = c.net.embedder(x)
    cosines = F.cosine_similarity(raw[:, None], c.net.gallery[None], dim=2)
    assert torch.allclose(c.network(x), 10 * cosines, atol=1e-5)
    assert torch.allclose(c.embed(x), F.normalize(raw, dim=1), atol=1e-6)
    assert torch.allclose(c.gallery.norm(dim=1), torch.ones(3), atol=1e-6)


def test_the_scale_changes_no_prediction_and_the_logits_in_proportion():
    x, _ = faces()
    z = {scale: tiny(scale=scale).network(x) for scale in (1.0, 40.0)}
    assert torch.allclose(40 * z[1.0], z[40.0], atol=1e-4)


def test_an_embedding_has_a_gradient_to_the_image():
    c, (x, _) = tiny(), faces(4)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(c.embed(x)[:, 0].sum(), x)
    assert (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("make", [tiny, lambda: FaceResNet(weights="untrained", width=8, size=16)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_embeddings_survive_preparation_for_many_evaluations(make, precision):
    c = make()
    x = c.example(5)
    embeddings, z = c.embed(x), c.network(x)
    c.run_as(precision, "channels_last")
    error = 1e-4 if precision == "float32" else 0.03
    assert torch.allclose(c.embed(x), embeddings, atol=error)
    assert torch.allclose(c.network(x), z, atol=error * c.scale)
    # The cosine itself is not rounded to 8 bits.
    assert torch.allclose(c.network(x), c.scale * c.embed(x) @ c.gallery.T, atol=1e-5 * c.scale)
    assert c.enrol(x, torch.arange(5)).network(x).argmax(1).tolist() == list(range(5))


# Enrolment.


def test_a_centre_is_the_mean_of_the_embeddings():
    c, (x, y) = tiny(), faces()
    enrolled = c.enrol(x, y)
    means = torch.stack([c.embed(x[y == k]).mean(0) for k in range(3)])
    assert torch.allclose(enrolled.gallery, F.normalize(means, dim=1), atol=1e-6)
    shuffled = torch.randperm(len(x))
    again = c.enrol(x[shuffled], y[shuffled]).gallery
    assert torch.allclose(again, enrolled.gallery, atol=1e-5)


def test_enrolment_changes_nothing_but_the_gallery():
    c, (x, y) = tiny(), faces(people=5)
    before = copy.deepcopy(c.net.state_dict())
    enrolled = c.enrol(x, y)
    assert (c.classes, enrolled.classes) == (3, 5)
    assert enrolled.network(x).shape == (60, 5)
    assert torch.equal(enrolled.embed(x), c.embed(x))
    assert all(torch.equal(before[name], t) for name, t in c.net.state_dict().items())
    assert not any(p.requires_grad for p in enrolled.network.parameters())


def test_people_that_training_never_saw_are_identified():
    """The network is trained on three people, and enrols seven others from one picture each."""
    c = tiny(embedding=32)
    c.fit(*faces(), epochs=20, batch=20, lr=0.01, progress=False)
    x, y = faces(280, people=7, seed=3)
    enrolled = c.enrol(x[:7], y[:7])
    assert (enrolled.network(x[7:]).argmax(1) == y[7:]).float().mean() > 0.9


def test_an_enrolled_classifier_knows_what_its_network_knew():
    c, (x, y) = tiny(), faces()
    c.fit(x, y, epochs=1, progress=False)
    assert str(c.enrol(x, y).trained_on[0]) == "clean"


X, Y = faces(6)
NAN_CENTRE = torch.full((2, 8), float("nan"))
WRONG = {
    "fewer labels": (lambda c: c.enrol(X, Y[:5]), r"n labels, got \(6, 1, 6, 6\) and \(5,\)"),
    "another size": (lambda c: c.enrol(X[:, :, :5, :5], Y), "load the pictures with size=6"),
    "no pictures": (lambda c: c.enrol(X[:0], Y[:0]), "n labels"),
    "one person": (lambda c: c.enrol(X, 0 * Y), "two or more people"),
    "a gap": (lambda c: c.enrol(X, 2 * Y), "each of 5 people, got none of 1, 3;"),
    "a named gap": (lambda c: c.enrol(X, Y, ["ann", "bob", "cid", "dan"]), "got none of dan;"),
    "more labels than names": (lambda c: c.enrol(X, Y, ["ann", "bob"]), "0 to 1, got 0 to 2"),
    "a negative label": (lambda c: c.enrol(X, Y - 1), "labels 0 to 1, got -1 to 1"),
    "another embedding": (
        lambda c: c.with_gallery(torch.ones(4, 9)),
        r"\(people, 8\).*got \(4, 9\)",
    ),
    "one centre": (lambda c: c.with_gallery(torch.ones(1, 8)), "two or more"),
    "NaN": (lambda c: c.with_gallery(NAN_CENTRE), "finite centres"),
    "zero": (lambda c: c.with_gallery(torch.zeros(2, 8)), "finite centres"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_enrolment_is_one_clear_line(call, message):
    with pytest.raises(BadParameter, match=message) as error:
        call(tiny())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("field", "value"), [("scale", 0.0), ("embedding", 0)])
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(BadParameter, match=f"{field}={value}"):
        tiny(**{field: value})


# The margin loss.


def recipe_of(c, **options):
    recipe = read_recipe(MarginRecipe, options, "tiny")
    recipe.trainee(c)
    return recipe


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
def test_the_loss_is_equation_4_of_the_paper(margin):
    c, (x, y) = tiny(scale=12), faces(9)
    cosines = c.embed(x) @ c.gallery.T
    terms = []
    for row, label in zip(cosines, y.tolist(), strict=True):
        right = torch.exp(12 * (row[label] - margin))
        others = sum(torch.exp(12 * row[j]) for j in range(3) if j != label)
        terms.append(-torch.log(right / (right + others)))
    loss = recipe_of(c, margin=margin).loss(c.net, x, y, make_noise(9))
    assert torch.allclose(loss, torch.stack(terms).mean(), rtol=1e-4)


def test_a_margin_makes_the_loss_larger_by_at_most_scale_times_margin():
    c, (x, y) = tiny(), faces(30)
    losses = [
        float(recipe_of(c, margin=m).loss(c.net, x, y, make_noise(30))) for m in (0.0, 0.1, 0.2)
    ]
    assert losses[0] < losses[1] < losses[2] <= losses[0] + 0.2 * c.scale


def test_training_moves_embeddings_towards_their_own_centre():
    c, (x, y) = tiny(), faces()
    own = []
    for _ in range(2):
        own.append(float((c.embed(x) @ c.gallery.T).gather(1, y[:, None]).mean()))
        c.fit(x, y, epochs=10, batch=20, lr=0.01, progress=False)
    assert own[1] > own[0] + 0.2


def test_a_wrong_margin_is_named():
    with pytest.raises(BadParameter, match="margin=1"):
        read_recipe(MarginRecipe, {"margin": 1.0}, "tiny")


# The networks.


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_facenet_has_the_size_of_the_published_files():
    """The files hold float32 tensors and a linear layer with 10,575 or 8,631 classes; their sizes
    are published as 111 and 107 MB (of 2^20 bytes).
    """
    embedder = FaceNet(weights="untrained").net.embedder
    assert parameters(embedder) == 23_482_624
    tensors = sum(t.numel() for t in embedder.state_dict().values())
    for classes, megabytes in ((10_575, 111), (8_631, 107)):
        assert abs(4 * (tensors + 513 * classes) / 2**20 - megabytes) < 1


# Channels and pixels a side behind each stage, at 160 pixels: arXiv:1602.07261, figures 10 to 14,
# with the channels of the networks in use.
STAGES = {7: (256, 17), 12: (256, 17), 13: (896, 8), 23: (896, 8), 24: (1792, 3), 30: (1792, 3)}


def test_facenet_has_the_stages_of_its_description():
    c = FaceNet(weights="untrained")
    shapes = {}
    for k, layer in enumerate(c.net.embedder):
        layer.register_forward_hook(lambda _, __, out, k=k: shapes.update({k: out.shape[1:]}))
    assert c.embed(c.example(1)).shape == (1, 512)
    assert {k: (s[0], s[1]) for k, s in shapes.items() if k in STAGES} == STAGES
    blocks = [m for m in c.net.modules() if isinstance(m, ScaledResidual)]
    assert [b.scale for b in blocks] == [0.17] * 5 + [0.1] * 10 + [0.2] * 5 + [1.0]
    assert [b.activate for b in blocks] == [True] * 20 + [False]


def test_facenet_normalises_as_its_description():
    """(p - 127.5) / 128 for p in 0..255."""
    c = FaceNet(weights="untrained", size=75)
    x = c.example(2)
    assert torch.allclose(c.net.embedder[0](x), (255 * x - 127.5) / 128, atol=1e-5)


def test_face_resnet_is_a_resnet_18_with_another_stem_and_head():
    """17 convolutions of 3x3 and 3 shortcuts of 1x1; the last map has size / 16 pixels a side."""
    c = FaceResNet(weights="untrained", width=8, size=64)
    kernels = [m.kernel_size[0] for m in c.net.modules() if isinstance(m, nn.Conv2d)]
    assert (kernels.count(3), kernels.count(1), len(kernels)) == (17, 3, 20)
    shapes = []
    for block in c.net.modules():
        if isinstance(block, FaceBlock):
            block.register_forward_hook(lambda *a: shapes.append(tuple(a[2].shape[1:])))
    c.embed(c.example(1))
    assert shapes == [(8 * 2**k, 32 // 2**k, 32 // 2**k) for k in range(4) for _ in range(2)]


REFUSED = [
    (FaceNet, {"size": 74}),
    (FaceResNet, {"size": 40}),
    (FaceResNet, {"size": 8}),
    (FaceResNet, {"width": 4}),
    (FaceResNet, {"dropout": 1.0}),
]


@pytest.mark.parametrize(("cls", "fields"), REFUSED)
def test_a_network_that_cannot_work_is_refused(cls, fields):
    ((name, value),) = fields.items()
    with pytest.raises(BadParameter, match=f"{name}={value}"):
        cls(weights="untrained", **fields)


# The kit.


def embedding_classifier(**members):
    """Return a Tiny whose class has these members."""
    return type("Tiny", (Tiny,), {"__doc__": "broken", **members})(weights="untrained")


class Euclidean(EmbeddingNetwork):
    def forward(self, x):
        return -self.scale * torch.cdist(self.embed(x), self.gallery)


def build_euclidean(self):
    return Euclidean(self.build_embedder(), torch.rand(3, 8), self.scale)


def enrol_first_picture_for_all(self, x, y):
    return Tiny.enrol(self, x[:1].expand_as(x), y)


def enrol_in_place(self, x, y, names=()):
    other = Tiny.enrol(self, x, y, names)
    self.network = other.network
    return other


def take_any_gallery(self, _):
    return copy.copy(self)


def fill_gaps(self, x, y):
    return Tiny.enrol(self, x, y.unique(return_inverse=True)[1])


BROKEN = {
    "check_embeddings_have_length_one": [
        {"embed": lambda self, x: self.net.embedder(x)},
        {"embed": lambda self, x: Tiny.embed(self, x)[:, :4]},
        {"embed": lambda self, x: Tiny.embed(self, x).double()},
    ],
    "check_logits_are_scaled_cosines": [{"build": build_euclidean}],
    "check_enrols_people": [
        {"enrol": enrol_first_picture_for_all},
        {"enrol": enrol_in_place},
        {"enrol": lambda self, *_: self},
    ],
    "check_refuses_a_wrong_gallery": [{"with_gallery": take_any_gallery}, {"enrol": fill_gaps}],
}
CHECKS = [c for c in kit("classifier") if c.__module__ == embedding_checks.__name__]
CASES = [(name, members) for name, cases in BROKEN.items() for members in cases]


def test_every_check_has_a_broken_example():
    assert {check.__name__ for check in CHECKS} == set(BROKEN)


@pytest.mark.parametrize(("name", "members"), CASES)
def test_a_check_catches(name, members):
    with pytest.raises(AssertionError):
        getattr(embedding_checks, name)(embedding_classifier(**members))


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_a_sound_classifier_passes_and_others_are_left_out(check):
    check(tiny())
    with pytest.raises(NotApplicable):
        check(ConvNet(weights="untrained", width=2))
