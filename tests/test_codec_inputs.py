"""What codecs and their trainings do with images and options that do not suit them."""

import pytest
import torch

from defend.classifiers.convnet import ConvNet
from defend.defenses.comdefend import ComDefend
from defend.defenses.robust_codec import RobustCodec
from defend.defenses.robust_codec_recipe import ATTACK_OPTIONS, RobustCodecRecipe
from defend.defenses.split_vqvae import SplitVQVAE
from defend.errors import BadParameter, Mismatch
from defend.noise import Noise

SLIM = {"weights": "untrained", "width": 8, "deep_width": 16, "latents": 4, "blocks": 1}
QUICK = {"precision": "float32", "layout": "contiguous", "progress": False, "batch": 4, "epochs": 1}

# Images.

WRONG_IMAGES = {
    "grey": (torch.zeros(2, 1, 8, 8), Mismatch, "takes images of 3 channels, got 1"),
    "bytes": (torch.zeros(2, 3, 8, 8).byte(), BadParameter, "expected a float .* got torch.uint8"),
    "one image": (torch.zeros(3, 8, 8), BadParameter, "expected a float .b, c, h, w. batch"),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
@pytest.mark.parametrize("method", ["purified", "rate"])
def test_images_that_no_codec_takes_are_refused_in_one_line(method, name):
    x, error, message = WRONG_IMAGES[name]
    with pytest.raises(error, match=message) as e:
        getattr(RobustCodec(**SLIM), method)(x)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("uses", [{}, {"self_ensemble": True}, {"recompress": 2}, {"resize": 0.1}])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 40), (13, 10)])
@pytest.mark.parametrize("halvings", [2, 4])
def test_images_below_the_multiple_have_a_reconstruction_and_a_rate(halvings, size, uses):
    purifier, x = RobustCodec(**SLIM, halvings=halvings, **uses), torch.rand(2, 3, *size)
    assert purifier.purified(x).shape == x.shape
    assert purifier.rate(x).isfinite().all()


@pytest.mark.parametrize("ensemble", [False, True])
def test_no_images_have_no_rates(ensemble):
    assert RobustCodec(**SLIM, self_ensemble=ensemble).rate(torch.zeros(0, 3, 8, 8)).shape == (0,)


LEARNED = {
    "robust-codec": lambda: RobustCodec(**SLIM),
    "a grey robust-codec": lambda: RobustCodec(**SLIM, channels=1),
    "comdefend": lambda: ComDefend(weights="untrained", channels=3),
    "split-vqvae": lambda: SplitVQVAE(weights="untrained", channels=3),
    "convnet": lambda: ConvNet(weights="untrained"),
}


@pytest.mark.parametrize("name", LEARNED)
def test_no_training_begins_with_images_of_other_channels(name):
    with pytest.raises(Mismatch, match=r"fit: .* takes images of . channels, got 5;") as e:
        LEARNED[name]().fit(torch.rand(8, 5, 28, 28), torch.zeros(8).long(), **QUICK)
    assert "\n" not in str(e.value)


# Options of a training.

OTHER_VALUES = {
    "mix": 0.7,
    "threshold": 1e-3,
    "ramp": 0.5,
    "attack_steps": 3,
    "eps": 0.1,
    "plain": 0.2,
    "growth": 0.2,
    "one_step": 0.2,
    "steps": 5,
    "restoration": 1.0,
    "rate_weight": 0.1,
    "label_smoothing": 0.0,
    "trades": 1.0,
}


@pytest.mark.parametrize("attack", ATTACK_OPTIONS)
def test_an_option_without_its_attack_is_refused(attack):
    for field in ATTACK_OPTIONS[attack]:
        value = {field: OTHER_VALUES[field]}
        with pytest.raises(BadParameter, match=f"{field}=.*without {attack}"):
            RobustCodecRecipe(**value)
        RobustCodecRecipe(**value, **{attack: True if attack == "adversarial" else "convnet"})


@pytest.mark.parametrize(
    "options", [{"adversarial": True}, {"against": "convnet:weights=convnet-digits", "eps": 0.1}]
)
def test_no_attack_of_a_training_pays_for_a_rate(options):
    """Of cheng2020 the rate costs as much as the reconstruction, and no attack reads it."""
    purifier = RobustCodec(**SLIM | {"channels": 1}, dataset="digits")
    recipe = RobustCodecRecipe(**options, plain=0.0) if "eps" in options else None
    recipe = recipe or RobustCodecRecipe(**options)
    net, noise = recipe.trainee(purifier), Noise.of(0, torch.arange(4))
    counted = []
    bits = purifier.net.bits
    purifier.net.bits = lambda y: counted.append(len(y)) or bits(y)
    recipe.share = 0.5
    recipe.loss(net, torch.rand(4, 1, 8, 8), torch.zeros(4).long(), noise)
    assert counted == [4], "once, for the loss"
