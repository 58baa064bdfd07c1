"""Recipe sections that decide a training: networks, losses, optimisation."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ctmr.recipe.base import Count, Fraction, NonNegative, Positive, Section
from ctmr.recipe.registry import Registry

GENERATORS = Registry(
    {
        "resnet": "ctmr.networks.generators:ResNetGenerator",
        "unet": "ctmr.networks.generators:UNetGenerator",
        "unet_resnet18": "ctmr.networks.generators:UNetResNet18",
        "encoder_decoder": "ctmr.networks.generators:EncoderDecoder",
        "subpixel": "ctmr.networks.generators:SubPixelGenerator",
    }
)
"""``network.generator.kind``: classes that `ctmr.networks.generators.build_generator` calls."""

DISCRIMINATORS = Registry(
    {
        "patchgan": "ctmr.networks.discriminators:PatchGan",
        "resnet18": "ctmr.networks.discriminators:ResNet18Classifier",
        "convolutional": "ctmr.networks.discriminators:Convolutional",
    }
)
"""``network.discriminator.kind``: classes that `ctmr.networks.discriminators.build_discriminator` calls."""

ADVERSARIAL_LOSSES = Registry(
    {
        "least_squares": "ctmr.training.cyclegan.losses:LEAST_SQUARES",
        "least_squares_sigmoid": "ctmr.training.cyclegan.losses:LEAST_SQUARES_SIGMOID",
        "bce": "ctmr.training.cyclegan.losses:BCE",
        "wasserstein": "ctmr.training.cyclegan.losses:WASSERSTEIN",
    }
)
"""``loss.adversarial``: `ctmr.training.cyclegan.losses.AdversarialLoss`es."""

CYCLE_TERMS = Registry(
    {
        "l1": "ctmr.training.cyclegan.losses:l1",
        "mse": "ctmr.training.cyclegan.losses:mse",
        "ssim": "ctmr.training.cyclegan.losses:dissimilarity",
    }
)
"""Keys of ``loss.cycle_terms``: functions ``(rec, real) → scalar`` of images ``[N, C, H, W]`` in [-1, 1]."""

RESNET18_STAGES = 4
"""Of a whole ResNet-18; each but the first halves the image, after a stem that quarters it."""


class LayerNorm(StrEnum):
    """Normalisation between layers."""

    INSTANCE = "instance"
    BATCH = "batch"


class Upsampling(StrEnum):
    """Doubling of the size in a generator: transposed convolution, or nearest neighbour and a 3×3 convolution."""

    TRANSPOSED = "transposed"
    RESIZE = "resize"


class Generator(Section):
    """Both generators."""

    kind: Annotated[str, AfterValidator(GENERATORS.require)] = "resnet"
    width: Count = 64
    """Channels of the first layer (ngf)."""
    blocks: Count = 9
    """Residual blocks (resnet, subpixel), levels (unet, encoder_decoder), or encoder stages (unet_resnet18: 1 to 4)."""
    norm: LayerNorm = LayerNorm.INSTANCE
    upsampling: Upsampling = Upsampling.TRANSPOSED
    rgb: bool = False
    """Sees each grey channel as three equal ones and averages the three it paints, as papers that read RGB pictures."""
    weights: str | None = None
    """ImageNet weights of a ResNet-18 encoder: safetensors, or ``.pth``, with torchvision's names."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _require_resnet18("generator", self.kind == "unet_resnet18", "blocks", self.blocks, self)
        return self


class Discriminator(Section):
    """Both discriminators."""

    kind: Annotated[str, AfterValidator(DISCRIMINATORS.require)] = "patchgan"
    width: Count = 64
    """Channels of the first layer (ndf)."""
    layers: Count = 3
    """Strided layers (patchgan: 3 gives 70×70; convolutional), or stages (resnet18: 1 to 4)."""
    norm: LayerNorm = LayerNorm.INSTANCE
    position: bool = False
    """Also sees row, |column| and depth under the skin; the generator never does. Assumes roughly aligned heads."""
    rgb: bool = False
    """Sees each grey channel as three equal ones."""
    weights: str | None = None
    """ImageNet weights of a ResNet-18: safetensors, or ``.pth``, with torchvision's names."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _require_resnet18("discriminator", self.kind == "resnet18", "layers", self.layers, self)
        return self


def _require_resnet18(
    name: str, is_resnet18: bool, depth_key: str, depth: int, section: Generator | Discriminator
) -> None:
    """Raise ValueError where ResNet-18's own settings do not fit its published form, or another network's kind."""
    if is_resnet18 and depth > RESNET18_STAGES:
        raise ValueError(f"a ResNet-18 has 1 to {RESNET18_STAGES} stages, found {depth}; set {depth_key} to 4")
    if section.weights is None:
        return
    if not is_resnet18:
        raise ValueError(f"weights are those of a ResNet-18, and the {name} is {section.kind}; set weights to null")
    if section.width != 64 or section.norm is not LayerNorm.BATCH:
        raise ValueError(
            f"ImageNet weights need width 64 and norm batch, found {section.width} and {section.norm}; "
            "set them, or weights to null"
        )


class Network(Section):
    """Networks of the CycleGAN."""

    neighbours: Annotated[int, Field(ge=0, le=8)] = 0
    """Slices on either side that both generators take and give as channels beside their own; 0: one slice alone."""
    generator: Generator = Generator()
    discriminator: Discriminator = Discriminator()

    def require_distance(self, slice_spacing_mm: float | None) -> None:
        """Raise ValueError where neighbours would be millimetres apart in one image and a centimetre in the next."""
        if self.neighbours and slice_spacing_mm is None:
            raise ValueError(
                f"network.neighbours {self.neighbours} needs slices at one distance in every image, training's and "
                "served ones; set preprocess.slice_spacing_mm"
            )


class Warmup(Section):
    """L1 to another subject's slice of like level and outline, fading out: keeps tissue order in short trainings."""

    weight: NonNegative = 0.0
    fraction: Fraction = 0.4
    """Share of the steps over which the weight falls linearly to 0."""
    level_slack: Annotated[int, Field(ge=0)] = 3
    """Slices are drawn this close in level."""
    matches: Count = 4
    """Of these, one is drawn among this many whose head outline is most alike."""
    refine: tuple[Fraction, ...] = ()
    """Shares of the steps at which ``preprocess.atlases`` are brought onto the translations that there are by then."""


class CycleTerms(Section):
    """Terms of a cycle loss: a weighted sum of `CYCLE_TERMS`; those without a field are 0 unless given."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Annotated[str, AfterValidator(CYCLE_TERMS.require)], NonNegative] = Field(init=False)

    l1: NonNegative = 1.0
    """Mean absolute difference."""
    mse: NonNegative = 0.0
    """Mean squared difference."""
    ssim: NonNegative = 0.0
    """1 - SSIM: Gaussian window of 11 pixels, range 2."""


class FeatureExtractor(StrEnum):
    """Networks whose features `ctmr.networks.features` compares."""

    EFFICIENTNET_LITE0 = "efficientnet_lite0"
    VGG19 = "vgg19"


class Perceptual(Section):
    """Cycle loss on the features of a network trained on ImageNet."""

    weight: NonNegative = 0.0
    """λ of the mean squared difference of features; 0: no such loss."""
    extractor: FeatureExtractor = FeatureExtractor.EFFICIENTNET_LITE0
    layers: Annotated[tuple[str, ...], Field(min_length=1)] = ("block_0", "block_2", "block_4")
    """``relu1_1`` to ``relu5_4`` of vgg19; ``stem`` and ``block_0`` to ``block_15`` of efficientnet_lite0."""
    weights: str | None = None
    """Weights of vgg19: safetensors, or ``.pth``, with torchvision's names; efficientnet_lite0 brings its own."""


class Pairs(StrEnum):
    """Slices that a supervised loss compares."""

    SUBJECT = "subject"
    """CT and MR of one subject at one level."""
    RANDOM = "random"
    """Any CT with any MR, drawn anew at each step."""


class Supervised(Section):
    """L1 between a translation and the slice it is paired with: baselines beside the unpaired setting."""

    weight: NonNegative = 0.0
    """λ; 0: no pairs."""
    pairs: Pairs = Pairs.SUBJECT


class Term(StrEnum):
    """Every loss of a step by the name it is logged under."""

    ADVERSARIAL_MR2CT = "adversarial_mr2ct"
    ADVERSARIAL_CT2MR = "adversarial_ct2mr"
    CYCLE_MR = "cycle_mr"
    CYCLE_CT = "cycle_ct"
    IDENTITY_CT = "identity_ct"
    IDENTITY_MR = "identity_mr"
    PERCEPTUAL_MR = "perceptual_mr"
    PERCEPTUAL_CT = "perceptual_ct"
    SUPERVISED_CT = "supervised_ct"
    SUPERVISED_MR = "supervised_mr"
    WARMUP_CT = "warmup_ct"
    WARMUP_MR = "warmup_mr"
    GENERATOR = "generator"
    DISCRIMINATOR_CT = "discriminator_ct"
    DISCRIMINATOR_MR = "discriminator_mr"
    GRADIENT_PENALTY_CT = "gradient_penalty_ct"
    GRADIENT_PENALTY_MR = "gradient_penalty_mr"
    DISCRIMINATOR = "discriminator"


LossName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Loss(Section):
    """Weights of the losses."""

    adversarial: Annotated[str, AfterValidator(ADVERSARIAL_LOSSES.require)] = "least_squares"
    adversarial_weight: NonNegative = 1.0
    """Of the adversarial losses; 0 trains no discriminators."""
    gradient_penalty: NonNegative = 10.0
    """Weight of the gradient penalty, which the Wasserstein loss alone has."""
    cycle: NonNegative = 10.0
    """λ of both cycle losses."""
    cycle_mr: NonNegative | None = None
    """λ of MR → CT → MR alone; ``null``: `cycle`."""
    cycle_ct: NonNegative | None = None
    """λ of CT → MR → CT alone; ``null``: `cycle`."""
    cycle_terms: CycleTerms = CycleTerms()
    identity: NonNegative = 0.5
    """Weight of the L1 identity loss of a modality, as a multiple of its cycle loss's λ."""
    perceptual: Perceptual = Perceptual()
    supervised: Supervised = Supervised()
    warmup: Warmup = Warmup()
    log_as: dict[LossName, Annotated[tuple[Term, ...], Field(min_length=1)]] = Field(default={})
    """A paper's own name of a loss → the terms it is the sum of; logged beside them."""

    @model_validator(mode="after")
    def _one_way_to_draw(self) -> Self:
        if self.supervised.weight > 0 and self.warmup.weight > 0:
            raise ValueError("supervised and warmup both choose which slices meet; set the weight of one to 0")
        return self


class Alarm(StrEnum):
    """Ways in which a training fails while its losses look content; `ctmr.training.alarms` defines them."""

    DISCRIMINATOR_WON = "discriminator_won"
    MODE_COLLAPSE = "mode_collapse"
    INTENSITY_INVERSION = "intensity_inversion"
    TISSUE_SWAP = "tissue_swap"
    IDENTITY_SHORTCUT = "identity_shortcut"


class Alarms(Section):
    """Alarms of a training. They change no weight; a loss that is not finite always ends a training."""

    watch: tuple[Alarm, ...] = tuple(Alarm)
    """Alarms that are measured, where the data can show them."""
    stop: tuple[Alarm, ...] = ()
    """Of these, the ones that end the training; the others are logged."""
    patience: Count = 3
    """Readings in a row beyond the limit that sound an alarm."""
    after: Fraction = 0.25
    """Share of the steps before readings count: young networks look like every fault."""

    @model_validator(mode="after")
    def _stop_what_is_watched(self) -> Self:
        unseen = [alarm for alarm in self.stop if alarm not in self.watch]
        if unseen:
            raise ValueError(f"stop names {', '.join(unseen)}, which watch leaves out; add them to watch")
        return self


class Precision(StrEnum):
    """Arithmetic of the networks' forward passes."""

    FP32 = "fp32"
    TF32 = "tf32"
    """fp32 whose convolutions on CUDA round their factors to 10 bits; elsewhere fp32."""
    BF16 = "bf16"
    AUTO = "auto"
    """bf16 where it is timed to be faster (on CUDA from Ampere on), else fp32."""


class Layout(StrEnum):
    """Memory format of images and weights in training."""

    AUTO = "auto"
    CONTIGUOUS = "contiguous"
    CHANNELS_LAST = "channels_last"


class Layers(StrEnum):
    """Instance norm and reflection padding that train: PyTorch's, or those of `ctmr.networks.fast_layers`."""

    AUTO = "auto"
    PYTORCH = "pytorch"
    FAST = "fast"


class Speed(Section):
    """Computation of a step. ``auto`` is what is timed to be fastest here; every way equals float64 in tests."""

    layout: Layout = Layout.AUTO
    layers: Layers = Layers.AUTO
    """Instance norm fused with its rectifier, and padding by index, that keep the memory format."""
    joined: Literal["auto"] | bool = "auto"
    """One pass for fake and identity, and for real and fake, where images do not change each other's output."""
    fused_adam: Literal["auto"] | bool = "auto"
    """Adam in one kernel for all weights."""
    compile: Literal["auto"] | bool = "auto"
    """torch.compile of both kinds of network, for the shapes of the training alone."""
    graphs: Literal["auto"] | bool = "auto"
    """CUDA graphs: a step's kernels are launched at once. No effect on CPU."""


class Train(Section):
    """Optimisation. Budgets are steps, not seconds, so that a slow machine gives the same model."""

    steps: Count = 200_000
    batch: Count = 1
    generator_every: Count = 1
    """The generators are updated at every so-many-th step; each step has a batch of its own."""
    discriminator_every: Count = 1
    """The discriminators are updated at every so-many-th step; 4 gives four updates of the generators to one."""
    subset_images: Annotated[int, Field(ge=0)] = 0
    """Slices of each modality that are trained on first; 0: all from the start."""
    subset_fraction: Fraction = 0.0
    """Share of the steps on that subset."""
    lr_generator: Positive = 2e-4
    lr_discriminator: Positive = 2e-4
    beta1: Fraction = 0.5
    beta2: Fraction = 0.999
    constant_fraction: Fraction = 0.5
    """Share of the steps at full learning rate; the rest falls linearly to 0."""
    pool: Annotated[int, Field(ge=0)] = 50
    """Images the discriminators' image pool holds."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the exponential moving average of the generators that is exported; 0: none."""
    precision: Precision = Precision.FP32
    threads: Annotated[int, Field(ge=0)] = 2
    """CPU threads; 0 leaves PyTorch's choice. Part of the recipe because it changes the order of sums."""
    deterministic: bool = False
    """Equal bits from equal runs on CUDA too, at the cost of speed; CPU has that without."""
    speed: Speed = Speed()
    flip: bool = True
    shift: Annotated[int, Field(ge=0)] = 0
    """Random shift in pixels, each axis: 15 is padding 256 to 286 pixels and cropping 256 at random."""
    flip_vertical: bool = False
    """Random flip along the rows too."""
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Random rotation, up to so many degrees either way."""
    zoom: tuple[Positive, Positive] = (1.0, 1.0)
    """Random magnification, lowest and highest."""
    intensity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Random factor on MR and grey pictures, up to so much below or above 1; never on HU, which mean something."""
    sample_every: Count = 500
    """Steps between sample grids."""
    checkpoint_every: Count = 500
    alarms: Alarms = Alarms()
    seed: int = 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.generator_every > 1 and self.discriminator_every > 1:
            raise ValueError(
                f"one of generator_every and discriminator_every must be 1, found {self.generator_every} and "
                f"{self.discriminator_every}, which leaves steps that train nothing"
            )
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom is the lowest, then the highest magnification, found {self.zoom}")
        if bool(self.subset_images) != bool(self.subset_fraction):
            raise ValueError(
                f"subset_images and subset_fraction go together, found {self.subset_images} and {self.subset_fraction}"
            )
        return self
