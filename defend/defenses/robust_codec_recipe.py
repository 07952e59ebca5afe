"""The training of `robust-codec`: rate and distortion, alone or on attacked images.

    L = lambda 255^2 MSE(x_hat, x) + R,  R in bits per pixel

1. plain: clean images. CompressAI's lambdas are the qualities 1 to 8.
2. `adversarial`: a share of the images is attacked as by `codec-distortion`, each then being its
   own target. Chen, Ma, arXiv:2112.08691, section IV; docs/codec.md says where it differs.
3. `against`: cross-entropy of frozen classifiers that read reconstructions of images attacked
   through both, beside reconstruction and rate. This project's own.

Symbols: lambda is ``tradeoff``, tau is ``threshold``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defend.defenses.codec_views import crop_padding, pad_to_multiple, run_codec
from defend.defenses.robust_codec_attacks import (
    attack_by_n_fgsm,
    attack_by_steps,
    attack_reconstruction,
    classify_loss,
)
from defend.defenses.small_codec import round_straight_through
from defend.noise import Noise
from defend.spec import parse
from defend.trained_on import TrainedOn
from defend.training.data import Source, Squares, random_crop
from defend.training.objectives import Objective
from defend.training.perturbations import STEP_FACTOR, eval_mode
from defend.training.quality import Quality
from defend.training.recipe import Recipe

LAMBDAS = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800)  # of CompressAI, for MSE
CROP_DIVISOR = 8  # random crops shift by up to an eighth of the image
AUXILIARY_LR = 10.0  # learning rate of the quantiles, in that of the networks: CompressAI's
VAL_STEPS = 10  # of the attacks on validation images
ATTACK_OPTIONS = {  # what each attack in training reads, and nothing else
    "adversarial": ("mix", "threshold", "ramp", "attack_steps"),
    "against": (
        *("eps", "plain", "growth", "one_step", "steps"),
        *("restoration", "rate_weight", "label_smoothing", "trades"),
    ),
}


class RobustCodecRecipe(Recipe):
    """Train a codec on clean images, on attacked ones, or to be read by frozen classifiers."""

    epochs: float = 20
    batch: int = 32
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 1.0
    val_images: int = 200
    quality_level: int = 3  # 1 to 8: CompressAI's lambdas
    tradeoff: float = 0.0  # lambda itself; 0: that of the quality level
    crop: int = 0  # side in pixels of random squares that are trained on; 0: whole images
    augment: Literal["none", "crop", "crop-flip"] = "none"  # shifts by up to an eighth, mirrors
    adversarial: bool = False  # attack the reconstruction of a share of the images
    mix: float = 0.5  # adversarial: the share that is attacked
    threshold: float = 1e-4  # adversarial: the MSE of an attacked image, 40 dB
    ramp: float = 0.05  # adversarial: share of the training in which the threshold rises from 0
    attack_steps: int = 10  # adversarial: gradients for each attacked image
    against: str = ""  # specs of frozen classifiers, as in resnet20+wrn16-4
    eps: float = 8 / 255  # against: of the perturbations, in L-inf
    plain: float = 0.1  # against: share of the training on clean images, rate and distortion alone
    growth: float = 0.15  # against: share after that in which eps rises from 0
    one_step: float = 0.57  # against: share after `plain` under N-FGSM; the rest is under PGD
    steps: int = 3  # against: of PGD
    restoration: float = 2.0  # against: weight of the squared error
    rate_weight: float = 0.005  # against: weight of the bits per pixel
    label_smoothing: float = 0.1  # against
    trades: float = 0.0  # against: weight of KL(clean, attacked); 0: cross-entropy when attacked

    def validate(self) -> None:
        """Raise BadParameter if an option is outside its range, or would have no effect."""
        super().validate()
        self.require(1 <= self.quality_level <= len(LAMBDAS), "quality_level", "1 to 8")
        for field in ("tradeoff", "crop", "restoration", "rate_weight", "trades"):
            self.require(getattr(self, field) >= 0, field, ">= 0")
        for field in ("ramp", "plain", "growth", "one_step"):
            self.require(0 <= getattr(self, field) <= 1, field, "a share of the training, 0 to 1")
        self.require(self.plain + self.one_step <= 1, "one_step", "at most 1 - plain")
        self.require(0 < self.mix <= 1, "mix", "a share of the images, > 0 and <= 1")
        self.require(self.threshold > 0, "threshold", "> 0, an MSE of pixels in [0, 1]")
        self.require(self.attack_steps >= 1, "attack_steps", ">= 1")
        self.require(0 < self.eps <= 1, "eps", "> 0 and <= 1")
        self.require(self.steps >= 1, "steps", ">= 1")
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "0 <= label_smoothing < 1")
        both = self.adversarial and bool(self.against)
        self.require(not both, "adversarial", "false beside against, which has its own attacks")
        self._refuse_idle_options()

    def _refuse_idle_options(self) -> None:
        """Raise BadParameter for an option of an attack that the training does not make."""
        for attack, fields in ATTACK_OPTIONS.items():
            for field in fields:
                default = getattr(type(self), field)
                is_idle = not getattr(self, attack) and getattr(self, field) != default
                self.require(not is_idle, field, f"{default} without {attack}")

    @property
    def trained_on(self) -> TrainedOn:
        """Return what the training knows; classifiers are added by `load_frozen`."""
        if self.against:
            return TrainedOn(kind="adversarial", attack=self._attacks(), norm="Linf", eps=self.eps)
        if self.adversarial:
            return TrainedOn(
                kind="adversarial", attack="codec-distortion", norm="MSE", eps=self.threshold
            )
        return TrainedOn(kind="clean")

    def _attacks(self) -> str:
        names = ["n-fgsm"] if self.one_step else []
        return ", ".join(names + ([f"pgd-{self.steps}"] if self.plain + self.one_step < 1 else []))

    @property
    def needs_labels(self) -> bool:
        return bool(self.against)

    def make_source(self, component: Any, x: Tensor | Source, y: Tensor | None) -> Source:
        """Return the images, or random squares of them."""
        source = super().make_source(component, x, y)
        return Squares(source, self.crop) if self.crop else source

    def trainee(self, component: Any) -> nn.Module:
        """Return the codec, beside the frozen classifiers."""
        specs = parse(self.against) if self.against else ()
        networks = [self.load_frozen(str(spec), component).network for spec in specs]
        self.judges = networks  # of `quality`
        self.has_quantiles = hasattr(component.net, "auxiliary_loss")
        return nn.ModuleDict({"codec": component.net, "classifiers": nn.ModuleList(networks)})

    def objectives(self) -> tuple[Objective, ...]:
        """Return the loss, and for CompressAI's models that of the quantiles."""
        main = Objective("loss", self.loss)
        if not self.has_quantiles:
            return (main,)
        quantiles = ("*.quantiles",)
        return (main, Objective("auxiliary", self.auxiliary_loss, quantiles, AUXILIARY_LR))

    def auxiliary_loss(self, net: Any, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return CompressAI's loss of the quantiles, which depends on no image."""
        loss: Tensor = net["codec"].auxiliary_loss()
        return loss

    def loss(self, net: Any, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return the loss of the phase of the training that the batch is in."""
        x = self._augment(x, noise)
        if self.against and self.share >= self.plain:
            return self._loss_against(net, x, y, noise)
        if self.adversarial:
            tau = self.threshold * min(1.0, self.share / self.ramp if self.ramp else 1.0)
            x = self._attack_some(net["codec"], x, tau, noise)
        return self._rate_distortion(net["codec"], x)

    def quality(self, component: Any, x: Tensor, y: Tensor) -> Quality:
        """Return minus the loss, on images that are attacked with `adversarial`.

        With `against` it is the accuracy of the classifiers under PGD through the codec.
        """
        codec, values = component.net, []
        for images, labels, noise in self.batches(component, x, y, size=self.batch):
            if self.against:
                values += self._score_against(component, images, labels, noise)
            else:
                if self.adversarial:
                    images = self._attack(codec, images, self.threshold, VAL_STEPS, noise)
                with torch.no_grad():
                    values += [-self._rate_distortion(codec, images)] * len(images)
        value = float(torch.stack(values).mean())
        name = f"accuracy under pgd-{VAL_STEPS}" if self.against else "minus rate-distortion loss"
        return Quality(name, value, tolerance=abs(value) * 0.005, images=len(x))

    def _augment(self, x: Tensor, noise: Noise) -> Tensor:
        if self.augment == "none":
            return x
        pad = x.shape[-1] // CROP_DIVISOR
        return random_crop(x, pad, noise.fork("augment"), flip=self.augment == "crop-flip")

    def _rate_distortion(self, codec: nn.Module, x: Tensor) -> Tensor:
        restored, bits = reconstruct(codec, x)
        tradeoff = self.tradeoff or LAMBDAS[self.quality_level - 1]
        return tradeoff * 255**2 * F.mse_loss(restored, x) + bits_per_pixel(bits, x)

    def _attack_some(self, codec: nn.Module, x: Tensor, tau: float, noise: Noise) -> Tensor:
        """Return x with the first images of the batch, a share `mix`, attacked."""
        count = max(1, round(self.mix * len(x)))
        rows = torch.arange(count, device=x.device)
        attacked = self._attack(codec, x[:count], tau, self.attack_steps, noise.take(rows))
        return torch.cat([attacked, x[count:]])

    def _attack(self, codec: nn.Module, x: Tensor, tau: float, steps: int, noise: Noise) -> Tensor:
        with eval_mode(codec):
            return attack_reconstruction(
                lambda t: restore(codec, t), x, tau, steps, noise.fork("start")
            )

    def _loss_against(self, net: Any, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        """Return cross-entropy, squared error and rate on images attacked through `net`."""
        codec, classifiers = net["codec"], net["classifiers"]
        x_adv = self._attack_classifiers(net, x, y, noise.fork("start"))
        restored, bits = reconstruct(codec, x_adv)
        attacked = [classifier(restored).float() for classifier in classifiers]
        if not self.trades:
            recognition = self._cross_entropy(attacked, y)
        else:
            restored, bits = reconstruct(codec, x)
            clean = [classifier(restored).float() for classifier in classifiers]
            divergence = torch.stack([kl(a, b) for a, b in zip(clean, attacked)]).mean()
            recognition = self._cross_entropy(clean, y) + self.trades * divergence
        rate = self.rate_weight * bits_per_pixel(bits, x)
        return recognition + self.restoration * F.mse_loss(restored, x) + rate

    def _cross_entropy(self, logits: list[Tensor], y: Tensor) -> Tensor:
        losses = [F.cross_entropy(z, y, label_smoothing=self.label_smoothing) for z in logits]
        return torch.stack(losses).mean()

    def _attack_classifiers(self, net: Any, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
        after_plain = self.share - self.plain
        eps = self.eps * (min(1.0, after_plain / self.growth) if self.growth else 1.0)
        with eval_mode(net):
            loss = classify_loss(lambda t: restore(net["codec"], t), net["classifiers"], y)
            if after_plain < self.one_step:
                return attack_by_n_fgsm(loss, x, eps, noise)
            return attack_by_steps(loss, x, eps, self.steps, noise)

    def _score_against(self, component: Any, x: Tensor, y: Tensor, noise: Noise) -> list[Tensor]:
        """Return the share of the classifiers that are right on each attacked image."""
        codec, networks = component.net, self.judges
        loss = classify_loss(lambda t: restore(codec, t), networks, y)
        with eval_mode(codec):
            x_adv = attack_by_steps(loss, x, self.eps, VAL_STEPS, noise, STEP_FACTOR)
        with torch.no_grad():
            restored = restore(codec, x_adv)
            right = torch.stack([net(restored).argmax(1) == y for net in networks])
        return list(right.float().mean(0))


def reconstruct(codec: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return reconstructions of x (b, c, h, w), of any size, and the bits (b,) of each."""
    multiple: int = codec.multiple  # type: ignore[assignment]
    restored, bits = codec(pad_to_multiple(x, multiple))
    return crop_padding(restored, x.shape[2], x.shape[3], multiple), bits


def restore(codec: nn.Module, x: Tensor) -> Tensor:
    """Return reconstructions of x (b, c, h, w) as deployed, without the cost of the rate."""
    return run_codec(codec, x, round_straight_through)


def bits_per_pixel(bits: Tensor, x: Tensor) -> Tensor:
    """Return the mean over images of their bits (b,) for each pixel of x (b, c, h, w)."""
    return bits.mean() / (x.shape[2] * x.shape[3])


def kl(wanted: Tensor, logits: Tensor) -> Tensor:
    """Return KL(softmax(wanted), softmax(logits)) of logits (b, classes), the mean over images."""
    return F.kl_div(
        logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
    )
