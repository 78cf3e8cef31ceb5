"""What the machine at hand is good at: the precision and the threads of a training."""

import os
import platform

import torch


def device_type(accelerator: str) -> str:
    """The kind of device that Fabric takes for this accelerator: "cpu", "cuda" or "mps"."""
    if accelerator != "auto":
        return "cuda" if accelerator == "gpu" else accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def multiplies_bf16(device: str) -> bool:
    """Whether this kind of device multiplies bfloat16 in hardware: elsewhere it only costs."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    # oneDNN says yes on every CPU with AVX-512 and emulates where it must. All that have AMX have
    # AVX512_BF16 as well.
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not x86 or torch.cpu._is_avx512_bf16_supported()


def choose_precision(precision: str, accelerator: str) -> str:
    """Fabric's name of the precision; "auto" is "bf16-mixed" where that is faster."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if multiplies_bf16(device_type(accelerator)) else "32-true"


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS, Windows


def choose_threads(threads: int, devices: int) -> int:
    """CPU threads of each of `devices` processes; 0 shares out the cores that are idle now.

    Idle is what the load average of the last minute leaves.
    """
    if threads:
        return threads
    cores = available_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    idle = cores * (1 - load / (os.cpu_count() or 1))
    return max(1, round(idle) // devices)


def describe(device: torch.device, precision: str, threads: int) -> str:
    """One line of what a training runs on: device, precision, threads."""
    name = f"CPU ({torch.backends.cpu.get_cpu_capability()})"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type != "cpu":
        name = device.type
    noun = "thread" if threads == 1 else "threads"
    return f"{name}, {precision}, {threads} {noun} of {available_cores()} cores"
