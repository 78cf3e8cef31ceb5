"""Training recipes: TOML files read into typed settings, with clear errors."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from audiovq.config import CODEBOOK_SETTINGS, ModelConfig
from audiovq.files import FileRefused
from audiovq.hearing import LONGEST_WINDOW
from audiovq.model import config_of
from audiovq.settings import (
    Choice,
    Count,
    Range,
    Rate,
    Share,
    Steps,
    Weight,
    check_card,
    check_ranges,
    read_settings,
)


@dataclass(frozen=True)
class ManifestSettings:
    """A list of recordings to train on."""

    path: str
    """lhotse CutSet, `.jsonl` or `.jsonl.gz`."""
    weight: Annotated[float, Range(0, above=True)] = 1.0
    """How often it is drawn from, in proportion to the other manifests."""


@dataclass(frozen=True)
class DataSettings:
    """What to train on."""

    train: tuple[ManifestSettings, ...] = ()
    """Manifests of the training set."""
    validation: str = ""
    """Manifest of the validation set; none when empty."""
    validation_clips: Count = 8
    """Recordings of it to use, the first ones."""
    crop_seconds: Annotated[float, Range(0, 600, above=True)] = 1.0
    """Length of a crop, in s."""
    batch_size: Count = 12
    """Crops of a step, over all devices."""
    level_range_db: Annotated[float, Range(0, 100)] = 10.0
    """Each crop's level is changed by up to this much up or down, in dB."""
    speed_range: Annotated[float, Range(0, 0.5)] = 0.0
    """Each crop is played faster or slower by up to this share, which changes its voice, 0 to 0.5:
    for corpora of few voices."""
    augment_share: Share = 0.0
    """Share of the crops that are heard in a room, with noise or another voice behind, through a
    filter or a codec. The sound is to come out as it was heard; the teacher, the labels and the
    units of `loss.consistency` stay those of the recording."""
    voice_range: Annotated[float, Range(0, 12)] = 0.0
    """Of those crops, some are heard in a voice that is up to this many semitones higher or lower,
    pitch and formants, at the same tempo, 0 to 12."""
    workers: Annotated[int, Range(0, 1024)] = 1
    """Processes that read crops, for each device."""
    teacher_folder: str = ""
    """Folder of teacher features, `<recording id>.npy` [frames, dim]; none when empty."""
    teacher_dim: Count = 128
    """Width of the teacher's features."""
    labels_folder: str = ""
    """Folder of phone labels, `<recording id>.npy` [frames], -1 for none, or of their
    probabilities [frames, n_labels]; none when empty."""
    n_labels: Count = 40
    """Number of phone labels."""
    cache_folder: str = ""
    """Folder for what is computed once: with train.learn = "decoder" the codes of all recordings,
    so that the encoder does not run again, and with model.source_channels their fundamentals.
    Filled when a run begins, and kept."""


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses; 0 leaves a loss out."""

    mel: Weight = 2.0
    """Multi-scale mel distance."""
    mel_short: Weight = 0.0
    """The same distance over its windows of up to 128 samples alone, on top of `mel`: a weight as
    large counts them twice. For trained models: from random weights it costs."""
    waveform: Weight = 120.0
    """Mean absolute difference of samples; it aligns phase early."""
    intelligibility: Weight = 0.0
    """1 - STOI: the envelopes of bands, which words are made of. For trained models, beside `mel`:
    alone it hears neither pitch nor noise."""
    commitment: Weight = 0.5
    """Distance of the latent from its codes, the mean over levels."""
    adversarial: Weight = 1.0
    """Generator's hinge loss, from `train.adversarial_from` on."""
    feature: Weight = 2.0
    """Feature matching, from `train.adversarial_from` on."""
    adversarial_balance: Weight = 2.0
    """Norm of the gradient of these two at the waveform, as a multiple of that of the other losses
    on the sound; their weights then only say how they share it. 0: their weights as they are."""
    pitch: Weight = 0.1
    """With `model.source_channels`: cross-entropy of the decoder's fundamental."""
    teacher: Weight = 4.0
    """Distillation: 1 - cosine between a head on the units and the teacher's features."""
    labels: Weight = 1.0
    """Cross-entropy of a phone classifier on the units."""
    consistency: Weight = 0.0
    """Cross-entropy of the units with those that `train.initial_model` gives the crop before it was
    augmented (after Gat et al. 2023): what is said decides the unit, not the microphone. The
    unit codebook stays as it is."""
    agreement: Weight = 0.0
    """With train.learn = "units" and data.augment_share: the same of the units of the augmented
    crop with those of the crop before it, which is heard too; the vectors of both move.
    With `consistency` the latter are kept near the model's; without, the codebook learns along.
    With `code_labels` each is to have the code of the other."""
    code_labels: Weight = 0.0
    """With train.learn = "units" and data.labels_folder: cross-entropy of the labels with those
    that the codes near a vector stand for. These learn it, and move by such losses alone."""
    code_context: Weight = 0.0
    """With `code_labels`: the same of the labels four frames before and after."""
    code_use: Weight = 0.0
    """With `code_labels`: nats by which the use of the codes falls short of all alike."""
    unit_gradient: Share = 1.0
    """With `model.unit_blocks`: share of the units' gradient that reaches the layers before them,
    which they share with the sound, 0 to 1."""
    unit_shift: Annotated[int, Range(0)] = 2
    """Frames by which the units may lag the teacher and the labels, to have heard more."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train."""

    steps: Count = 20_000
    """Steps of the whole run."""
    autoencoder_steps: Steps = 3_000
    """Steps before the quantizer is switched on, with k-means starts of all codebooks."""
    adversarial_from: Steps = 10_000
    """Step from which on the discriminators train too; `steps` or more: never."""
    adversarial_items: Count = 6
    """Items of a device's batch that the discriminators hear, from the first on."""
    discriminator_head_start: Steps = 0
    """Steps from `adversarial_from` on in which the discriminators learn alone and the generator
    waits: for one that is trained already, which new discriminators would lead astray."""
    initial_discriminators: str = ""
    """Folder of a run whose discriminators to go on with instead of new ones."""
    learning_rate: Rate = 6e-4
    """Of AdamW, for the generator."""
    discriminator_learning_rate: Rate = 3e-4
    """Of AdamW, for the discriminators."""
    warmup_steps: Steps = 200
    """Steps over which the learning rates rise from 0."""
    decay_share: Share = 0.3
    """Share of the run at its end over which the learning rates fall to 0."""
    clip_norm: Annotated[float, Range(0, above=True)] = 5.0
    """Gradients of the generator are scaled down to this norm."""
    ema_decay: Share = 0.999
    """Of the moving average of the generator's weights, which validation and export use."""
    quantizer_dropout: Share = 0.5
    """Share of items that train with fewer levels, 1 to all at random."""
    precision: Annotated[str, Choice(("auto", "bf16-mixed", "32-true"))] = "auto"
    """Of encoder, decoder and discriminators: "bf16-mixed" or "32-true" (Fabric's names); "auto" is
    bf16 where the CPU or GPU multiplies it in hardware (without, it is ten times slower than
    float32). Quantizer, STFTs and losses are always float32."""
    accelerator: Annotated[str, Choice(("auto", "cpu", "cuda", "gpu", "mps"))] = "auto"
    """"auto", "cpu", "cuda", or another of Fabric's names."""
    devices: Count = 1
    """Processes, one for each device."""
    threads: Steps = 1
    """CPU threads of each process; 0 shares out the cores that are idle at the start. Two are 1.7
    times as fast as one on an idle machine, and ten times slower on a busy one, where they wait for
    each other: hence one unless told otherwise. Sums hang on the number, so a run that resumes with
    another one is not the same bit for bit."""
    seed: Annotated[int, Range(0, 2**53)] = 0
    """Of the weights, the order of the data and the dropout."""
    log_every: Count = 50
    """Steps between log lines."""
    validate_every: Count = 2_000
    """Steps between validations."""
    checkpoint_every: Count = 500
    """Steps between checkpoints: what a crash can cost."""
    keep: Count = 2
    """Checkpoints to keep, besides the best one."""
    initial_model: str = ""
    """Folder of a model to start from instead of random weights; the run starts quantized."""
    new_codebooks: bool = False
    """Leave the codebooks of `initial_model`: new ones start from k-means, after
    `autoencoder_steps`, as many and as large and of such strides as the recipe says. With
    learn = "units" that of the units alone, as large as it was."""
    learn: Annotated[str, Choice(("all", "decoder", "sound", "units"))] = "all"
    """"all"; "decoder": then the tokens stay those of `initial_model`; or, with model.level_frames,
    "sound": then its units stay, or "units": then the acoustic codes and the decoder do."""
    heads_alone: Steps = 0
    """With learn = "units" and a teacher or labels: first steps in which only the heads learn by
    which these judge the units. New ones would lead a model astray that is trained already."""


@dataclass(frozen=True)
class Recipe:
    """A whole training: the sections of a recipe file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataSettings = field(default_factory=DataSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    card: dict[str, Any] = field(default_factory=dict)
    """What the model's card says: name, licence, data, and whatever else."""

    def __post_init__(self) -> None:
        train, data = self.train, self.data
        if not data.train:
            raise ValueError("data.train lists no manifest; name at least one.")
        for name in ("data", "loss", "train"):
            check_ranges(getattr(self, name), name)
        for index, manifest in enumerate(data.train):
            check_ranges(manifest, f"data.train[{index}]")
        check_card(self.card)
        if data.batch_size % train.devices:
            raise ValueError(
                f"data.batch_size must be a multiple of train.devices ({train.devices}), "
                f"not {data.batch_size}."
            )
        self._check_learn()
        self._check_codebooks()
        self._check_lengths()

    def _check_learn(self) -> None:
        """What learns, with the losses, data and sizes that it needs."""
        train, data = self.train, self.data
        if train.learn == "decoder" and not train.initial_model:
            raise ValueError(
                'train.learn = "decoder" keeps the tokens of a model; name it as '
                'train.initial_model ("default" for the bundled one).'
            )
        keeps_units = train.learn in ("decoder", "sound")
        if keeps_units and (data.teacher_folder or data.labels_folder):
            raise ValueError(
                f'train.learn = "{train.learn}" leaves the units as they are; leave out '
                "data.teacher_folder and data.labels_folder."
            )
        if self.loss.agreement and not (train.learn == "units" and data.augment_share):
            raise ValueError(
                'loss.agreement needs train.learn = "units" and data.augment_share; set it to 0.'
            )
        if data.voice_range and not data.augment_share:
            raise ValueError(
                "data.voice_range is of the crops that data.augment_share changes; give both, or "
                "set it to 0."
            )
        alone = train.learn in ("sound", "units")
        if alone and not (train.initial_model and self.model.level_frames):
            other = "sound" if train.learn == "units" else "units"
            raise ValueError(
                f'train.learn = "{train.learn}" leaves the {other} of a model as it is; name that '
                "as train.initial_model, and give the units layers of their own: "
                "model.level_frames."
            )
        if self.loss.consistency and (not train.initial_model or keeps_units):
            raise ValueError(
                "loss.consistency keeps the units of a model while all of it learns; name that as "
                'train.initial_model and leave train.learn at "all", or set it to 0.'
            )
        if self.loss.consistency and self.model.unit_level != "split":
            raise ValueError('loss.consistency needs model.unit_level "split"; set it to 0.')
        if data.cache_folder and train.learn == "decoder":
            if data.level_range_db or data.speed_range or data.augment_share:
                raise ValueError(
                    "the codes in data.cache_folder are those of the recordings as they are; set "
                    "data.level_range_db, data.speed_range and data.augment_share to 0."
                )
        elif self.model.source_channels and not data.cache_folder and train.learn != "units":
            raise ValueError(
                "model.source_channels learns the fundamentals of the recordings; name a folder "
                "for them as data.cache_folder."
            )

    def _check_codebooks(self) -> None:
        """Of codebooks that begin anew, and of codes that stand for labels."""
        train, data, loss = self.train, self.data, self.loss
        fits = train.learn == "units" and data.labels_folder and self.model.codebook == "ema"
        fits = fits and self.model.unit_labels in (0, data.n_labels)
        if loss.code_labels and (not fits or loss.consistency):
            raise ValueError(
                'loss.code_labels needs train.learn = "units", data.labels_folder, model.codebook '
                f'= "ema", model.unit_labels = {data.n_labels} (data.n_labels) or 0, not '
                f"{self.model.unit_labels}, and no loss.consistency; or set it to 0."
            )
        for name in ("code_context", "code_use"):
            if getattr(loss, name) and not loss.code_labels:
                raise ValueError(f"loss.{name} is of loss.code_labels; give both, or set it to 0.")
        if train.new_codebooks and (
            not train.initial_model or train.learn not in ("all", "units") or self.loss.consistency
        ):
            raise ValueError(
                'train.new_codebooks needs train.initial_model and train.learn = "all" or "units", '
                "and no loss.consistency, which keeps the codebook of the units; set it to false."
            )
        alone = train.new_codebooks and train.learn == "units"
        if alone and train.autoencoder_steps and not (data.teacher_folder or data.labels_folder):
            raise ValueError(
                "train.autoencoder_steps of units that learn alone need what judges them without a "
                "codebook; name data.teacher_folder or data.labels_folder, or set it to 0."
            )

    def _check_lengths(self) -> None:
        """Of the run's stages and of its crops."""
        train, data = self.train, self.data
        keeps_codebooks = train.initial_model and not train.new_codebooks
        if not keeps_codebooks and train.autoencoder_steps >= train.steps:
            raise ValueError(
                f"train.autoencoder_steps ({train.autoencoder_steps}) must be fewer than "
                f"train.steps ({train.steps}), or the run ends before it has codebooks; a quarter "
                f"is usual: train.autoencoder_steps={train.steps // 4}."
            )
        if train.initial_discriminators and (
            train.learn == "units" or train.adversarial_from >= train.steps
        ):
            raise ValueError(
                "train.initial_discriminators is of discriminators, which this run does without; "
                'leave it out, or set train.adversarial_from and let "all", "decoder" or "sound" '
                "learn."
            )
        if train.heads_alone and (
            train.learn != "units" or not (data.teacher_folder or data.labels_folder)
        ):
            raise ValueError(
                'train.heads_alone is of the heads on the units: it needs train.learn = "units" '
                "and data.teacher_folder or data.labels_folder; leave it out."
            )
        if train.heads_alone >= train.steps:
            raise ValueError(
                f"train.heads_alone is {train.heads_alone} of {train.steps} steps, after which the "
                "units never learn; give fewer."
            )
        if train.discriminator_head_start:
            first = train.adversarial_from + train.discriminator_head_start
            if train.learn == "units":
                raise ValueError(
                    "train.discriminator_head_start is of discriminators, which "
                    'train.learn = "units" does without; set it to 0.'
                )
            if train.adversarial_from < train.steps <= first:
                raise ValueError(
                    f"train.adversarial_from and train.discriminator_head_start are {first} steps "
                    f"together and must be fewer than train.steps ({train.steps}), or the "
                    "generator never learns again."
                )
        if self.crop_frames < 1:
            raise ValueError(
                f"data.crop_seconds must be at least one frame, or one group of "
                f"model.level_strides, not {data.crop_seconds}."
            )
        half = LONGEST_WINDOW // 2
        if train.learn != "units" and self.crop_frames * self.model.hop_length <= half:
            raise ValueError(
                f"data.crop_seconds must be more than {half / self.model.sample_rate:g}, half of "
                f"the longest window of the mel distance, not {data.crop_seconds}."
            )
        has_targets = data.teacher_folder or data.labels_folder
        if has_targets and self.loss.unit_shift >= self.crop_frames:
            raise ValueError(
                f"loss.unit_shift must be fewer than the frames of a crop ({self.crop_frames}), "
                f"not {self.loss.unit_shift}."
            )

    @property
    def crop_frames(self) -> int:
        """Frames of a crop, in whole groups of `level_strides`."""
        group = self.model.group_frames
        return round(self.data.crop_seconds * self.model.frame_rate / group) * group


def read_recipe(path: str | Path, changes: list[str] | None = None) -> Recipe:
    """Read a recipe file; `changes` are settings "section.key=value" that override it.

    A name that ends in `.json` is read as what a run saved. Paths in it are relative to the current
    folder. Sizes that are not said are those of `train.initial_model`. Raises `FileRefused` for a
    file that is not a recipe and `ValueError` for a change that is not possible.
    """
    return read_settings(Recipe, path, changes, _add_sizes)


def _add_sizes(values: dict[str, Any]) -> None:
    """Give a recipe the sizes of the model that it goes on from, but for those that it names, and
    those of codebooks that are to be new."""
    train, named = values.get("train", {}), values.get("model", {})
    if not (isinstance(train, dict) and isinstance(named, dict)):
        return  # said when they are read
    name = train.get("initial_model")
    if not (name and isinstance(name, str)):
        return
    try:
        sizes = asdict(config_of(name))
    except FileRefused:
        return  # said when a run begins; one that goes on does not need it
    if train.get("new_codebooks") and train.get("learn") != "units":
        sizes = {key: size for key, size in sizes.items() if key not in CODEBOOK_SETTINGS}
    lists = {key: list(size) for key, size in sizes.items() if isinstance(size, tuple)}
    values["model"] = sizes | lists | named
