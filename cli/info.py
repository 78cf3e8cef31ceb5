"""`audiovq info`: what a token file or a model is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from audiovq import hub
from audiovq.codes import TOKEN_SUFFIXES

from .failures import plain
from .options import Model, know_tables, load_model


def info(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|MODEL",
            help='Token file, or a model as --model names it: "default", a folder, owner/name.',
        ),
    ] = "default",
    model: Model = "default",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a token file or a model is.

    Example: audiovq info speech.avq
    """
    facts = _model_facts(source) if _is_model(source) else _token_facts(source, model)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in facts.items():
        text = str(value)
        if isinstance(value, list):  # lines of text, or numbers of levels
            text = ("\n" if any(isinstance(v, str) for v in value) else ", ").join(map(str, value))
        table.add_row(plain(name.replace("_", " ")), plain(text))
    Console().print(table)


def _is_model(source: str) -> bool:
    """Whether a name is a model's; a token file that is missing may look like one of the hub."""
    path = Path(source)
    on_hub = hub.names_repository(source) and path.suffix.lower() not in TOKEN_SUFFIXES
    return source == "default" or path.is_dir() or (on_hub and not path.exists())


def _token_facts(source: str, model: str) -> dict[str, Any]:
    from audiovq import read_tokens

    know_tables(model)
    tokens = read_tokens(source)
    levels, frames = tokens.indices.shape
    n_tokens = sum(len(codes) for codes in tokens.levels)
    facts: dict[str, Any] = {"file": source, "n_q": levels, "frames": frames, "tokens": n_tokens}
    if tokens.level_strides:
        facts["level_strides"] = list(tokens.level_strides)
    if tokens.header is None:
        codec = load_model(model)
        header = replace(codec.header(1, 0), n_q=levels, level_strides=tokens.level_strides)
        return facts | {
            "duration_s": frames / codec.config.frame_rate,
            "bitrate": header.bitrate,
            "model": f"not said in .npy; as {codec.name} has it",
        }
    header = tokens.header
    seconds = header.n_samples / header.sample_rate
    facts |= {"duration_s": seconds, "bitrate": header.bitrate}
    if tokens.coded_bytes is not None:
        facts["coded_bitrate"] = 8 * tokens.coded_bytes / seconds
    return facts | {
        "model": header.model,
        "fingerprint": header.fingerprint,
        "sample_rate": header.sample_rate,
        "codebook_size": header.codebook_size,
    }


def _model_facts(source: str) -> dict[str, Any]:
    codec = load_model(source)
    config, rate = codec.config, codec.config.sample_rate
    facts = {
        "model": codec.name,
        "fingerprint": codec.fingerprint,
        "parameters": sum(parameter.numel() for parameter in codec.parameters()),
        "encoder_parameters": sum(p.numel() for p in codec.encoder.parameters()),
        "decoder_parameters": sum(p.numel() for p in codec.decoder.parameters()),
        "sample_rate": rate,
        "frame_rate": config.frame_rate,
        "codebooks": config.n_codebooks,
        "codebook_size": config.codebook_size,
        "bitrate": config.bitrate(config.n_codebooks),
        "tokens_per_second": config.codes_per_second(config.n_codebooks),
        "receptive_field_s": config.receptive_field / rate,
        "latency_ms": 1000 * config.delay / rate,
    }
    if config.level_strides:
        facts["level_strides"] = list(config.level_strides)
        facts["level_rates"] = [config.level_rate(level) for level in range(config.n_codebooks)]
    card = {name: value for name, value in codec.card.items() if name != "name"}
    return facts | {f"card_{name}" if name in facts else name: card[name] for name in card}
