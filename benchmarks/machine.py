"""What the benchmarks share: the machine's name, sound to work on, and a table."""

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from audiovq.audio import load_audio
from audiovq.files import FileRefused

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_benchmark(main: Callable[[], None]) -> None:
    """Run a benchmark; what it cannot read is one sentence, and exit code 1."""
    try:
        main()
    except FileRefused as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def describe() -> str:
    """One line: processor, cores, PyTorch."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}{load}"
    )


def speech(seconds: float, sample_rate: int = 16_000) -> np.ndarray:
    """The clips of examples/ one after the other, over and over: float32 [n]."""
    clips = [load_audio(path, sample_rate) for path in sorted(EXAMPLES.glob("*.flac"))]
    return np.resize(np.concatenate(clips), round(seconds * sample_rate))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
