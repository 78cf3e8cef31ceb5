"""`audiovq lm`: language models over tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from audiovq.files import refuse_existing, write_standard_output

from .failures import EXIT_CODES
from .options import Device, DeviceOption, Force, Json, Model, Quiet, know_tables, load_model
from .prepare import SpeakerFrom
from .train import set_up_log

if TYPE_CHECKING:
    from numpy import ndarray

    from audiovq import AudioVQ
    from audiovq.lm import LanguageModel, Sampling, Speech

lm = typer.Typer(
    no_args_is_help=True,
    epilog=EXIT_CODES,
    help="Language models over tokens: train them, and let them speak. (Extra `lm`.)",
)

Lm = Annotated[
    str,
    typer.Option(
        "--lm", help='"default", the one in the package, or a folder that audiovq lm train wrote.'
    ),
]
Seconds = Annotated[float, typer.Option("--seconds", help="How much to generate, in s.")]
Out = Annotated[
    str | None, typer.Option("-o", "--out", help="Sound to write, .wav or .flac, or -.")
]
Streamed = Annotated[
    bool,
    typer.Option("--stream", help="Write WAV to standard output while it is generated."),
]
Seed = Annotated[int, typer.Option("--seed", help="The same seed draws the same.")]
Temperature = Annotated[
    float, typer.Option("--temperature", help="Of the units: 0 takes the likeliest, up to 10.")
]
TopP = Annotated[
    float, typer.Option("--top-p", help="Draw from the likeliest that share this probability.")
]
AcousticTemperature = Annotated[
    float, typer.Option("--acoustic-temperature", help="Of the sound of the units.")
]


@lm.command("prepare")
def prepare_command(
    tokens: Annotated[
        Path, typer.Argument(metavar="TOKENS_DIR", help="Folder of .avq files, and those in it.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    text: Annotated[
        Path | None,
        typer.Option(help="Table (.tsv) of what is said, with the columns path and text."),
    ] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the speakers or files to keep for validation.")
    ] = 0.05,
    speaker_from: Annotated[
        SpeakerFrom | None,
        typer.Option(
            help="What names the speaker: the file's folder, or its name up to the first - or _."
        ),
    ] = None,
    max_duration: Annotated[int, typer.Option(help="Frames of the longest unit.")] = 16,
    model: Annotated[
        str, typer.Option(help="Folder of the model whose tables coded the tokens, if any did.")
    ] = "default",
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Pack a folder of tokens for training: merged units, durations, texts where they are known.

    Example: audiovq lm prepare tokens/ -o data/lm --text texts.tsv --speaker-from prefix
    """
    from audiovq.lm.prepare import prepare

    know_tables(model)
    done = prepare(
        tokens,
        out,
        texts=text,
        validation=validation,
        speaker_from=speaker_from,
        max_duration=max_duration,
        overwrite=force,
    )
    if as_json:
        typer.echo(json.dumps({"folder": str(out), **done.__dict__}))
    elif not quiet:
        typer.echo(
            f"wrote {out}: {done.seconds / 3600:.2f} h, {done.n_train} utterances to train on, "
            f"{done.n_validation} for validation, {done.n_texts} with text, "
            f"{done.units_per_second:.1f} units a second"
        )


@lm.command("train")
def train_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="Which stage, on what.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="section.key=value", help="Change a setting; may repeat."),
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the language model, for both stages.")
    ] = Path("runs/lm"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the stage.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a stage, units or acoustic. It can be stopped and goes on with --resume, bit for bit.

    Example: audiovq lm train recipes/lm/units.toml -o runs/lm
    """
    from audiovq.lm.recipe import read_recipe

    settings = read_recipe(recipe, changes)
    from audiovq.interrupt import TrainingStopped
    from audiovq.lm.train import train

    console = Console(stderr=True)
    set_up_log(console, quiet)
    try:
        folder = train(settings, out, resume=resume, console=None if quiet else console)
    except TrainingStopped as stopped:
        raise typer.Exit(128 + stopped.signum) from stopped
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "steps": settings.train.steps}))
    elif not quiet:
        typer.echo(f"wrote {folder}; audiovq lm sample --lm {out} --seconds 5 -o speech.wav")


@lm.command("continue")
def continue_command(
    source: Annotated[str, typer.Argument(metavar="AUDIO", help="Speech to go on with.")],
    language_model: Lm = "default",
    seconds: Seconds = 5.0,
    out: Out = None,
    streamed: Streamed = False,
    seed: Seed = 0,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    acoustic_temperature: AcousticTemperature = 0.5,
    model: Model = "default",
    device: DeviceOption = Device.CPU,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Go on with speech, in its voice. What is written begins with the speech itself.

    Example: audiovq lm continue speech.wav --seconds 5 -o longer.wav
    """
    sampling = _sampling(seed, temperature, top_p, acoustic_temperature)
    target = _target(out, streamed, force)
    loaded = _load(language_model, model, device)
    wav = _speech(source, loaded.codec)
    target(lambda hear: loaded.continue_speech(wav, seconds, sampling, hear), loaded.codec, quiet)


@lm.command("sample")
def sample_command(
    language_model: Lm = "default",
    seconds: Seconds = 5.0,
    out: Out = None,
    streamed: Streamed = False,
    seed: Seed = 0,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    acoustic_temperature: AcousticTemperature = 0.5,
    model: Model = "default",
    device: DeviceOption = Device.CPU,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Draw speech from nothing.

    Example: audiovq lm sample --seconds 5 --seed 3 -o speech.wav
    """
    sampling = _sampling(seed, temperature, top_p, acoustic_temperature)
    target = _target(out, streamed, force)
    loaded = _load(language_model, model, device)
    target(lambda hear: loaded.sample(seconds, sampling, hear), loaded.codec, quiet)


@lm.command("say")
def say_command(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to say.")],
    language_model: Lm = "default",
    voice: Annotated[
        str | None, typer.Option(help="A few seconds of speech whose voice to take.")
    ] = None,
    most: Annotated[
        float, typer.Option("--seconds", help="The longest that it may take, in s.")
    ] = 20.0,
    out: Out = None,
    streamed: Streamed = False,
    seed: Seed = 0,
    temperature: Temperature = 0.9,
    top_p: TopP = 0.95,
    acoustic_temperature: AcousticTemperature = 0.5,
    model: Model = "default",
    device: DeviceOption = Device.CPU,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Say a text.

    Example: audiovq lm say "It was a bright day." --voice speech.wav -o said.wav
    """
    sampling = _sampling(seed, temperature, top_p, acoustic_temperature)
    target = _target(out, streamed, force)
    loaded = _load(language_model, model, device)
    wav = None if voice is None else _speech(voice, loaded.codec)
    target(
        lambda hear: loaded.say(text, wav, sampling, hear, most_seconds=most),
        loaded.codec,
        quiet,
    )


@lm.command("score")
def score_command(
    sources: Annotated[list[str], typer.Argument(metavar="AUDIO...", help="Speech.")],
    language_model: Lm = "default",
    model: Model = "default",
    device: DeviceOption = Device.CPU,
    as_json: Json = False,
) -> None:
    """Say how likely speech is: log-likelihood, in nats, of a unit and of a second.

    Example: audiovq lm score real.wav shuffled.wav
    """
    loaded = _load(language_model, model, device)
    for source in sources:
        score = loaded.score(_speech(source, loaded.codec))
        if as_json:
            facts = {"per_unit": score.per_unit, "per_second": score.per_second}
            facts |= {"perplexity": score.perplexity, "units": score.n_units}
            typer.echo(json.dumps({"source": source, **facts, "seconds": score.seconds}))
        else:
            typer.echo(
                f"{source}: {score.per_unit:.3f} a unit, {score.per_second:.2f} a second; "
                f"perplexity of the units {score.perplexity:.1f} ({score.n_units} units, "
                f"{score.seconds:.2f} s)"
            )


def _sampling(
    seed: int, temperature: float, top_p: float, acoustic_temperature: float
) -> "Sampling":
    from audiovq.lm.sampling import Sampling

    return Sampling(seed, temperature, top_p, acoustic_temperature)


def _load(name: str, model: str, device: Device) -> "LanguageModel":
    from audiovq.lm.model import LanguageModel

    codec = load_model(model, device)
    return LanguageModel.from_pretrained(name, codec, device=codec.device)


def _speech(source: str, codec: "AudioVQ") -> "ndarray":
    """Samples [1, 1, N] of a file."""
    from audiovq.audio import load_audio

    return load_audio(source, codec.config.sample_rate)[None, None]


Generate = Callable[[Callable[[Any], None] | None], "Speech"]
Target = Callable[[Generate, "AudioVQ", bool], None]


def _target(out: str | None, streamed: bool, force: bool) -> Target:
    """What writes the sound that is generated. Refuses outputs before the work."""
    if streamed == (out is not None):
        raise typer.BadParameter("give -o FILE, or --stream to write to standard output.")
    if streamed:
        return _stream
    assert out is not None
    if out != "-":
        refuse_existing(out, overwrite=force)

    def save(generate: Generate, codec: "AudioVQ", quiet: bool) -> None:
        from audiovq.audio import audio_writer

        rate = codec.config.sample_rate
        with audio_writer(out, rate, overwrite=force) as file:
            speech = generate(None)
            file.write(speech.wav[0, 0].cpu().numpy())
        if not quiet:
            seconds, prompt = speech.wav.shape[2] / rate, speech.n_prompt / codec.config.frame_rate
            of_prompt = f", {prompt:.2f} s of it the prompt" if prompt else ""
            typer.echo(f"wrote {out}: {seconds:.2f} s{of_prompt}", err=out == "-")

    return save


def _stream(generate: Generate, codec: "AudioVQ", quiet: bool) -> None:
    from audiovq.audio import as_int16, wav_header

    head = [wav_header(codec.config.sample_rate)]  # before the first sound, but not before refusals

    def hear(wav: Any) -> None:
        samples = as_int16(wav.flatten().cpu().numpy()).astype("<i2").tobytes()
        write_standard_output(b"".join([*head, samples]))
        head.clear()

    generate(hear)
