"""How units and their sound are drawn."""

from dataclasses import dataclass

TAMEST = 0.001
"""Lowest temperature but 0: far lower ones go beyond what float32 holds."""


@dataclass(frozen=True)
class Sampling:
    """How to draw. Raises `ValueError` for values out of range."""

    seed: int = 0
    """What is drawn hangs on it alone, on one machine."""
    temperature: float = 0.9
    """Of the units: above 1 wilder, below 1 tamer, 0 for the likeliest; .001 to 10."""
    top_p: float = 0.95
    """Units are drawn from the likeliest ones that share this probability, above 0 to 1."""
    acoustic_temperature: float = 0.5
    """Of the sound, as `temperature`."""

    def __post_init__(self) -> None:
        for name in ("temperature", "acoustic_temperature"):
            value = getattr(self, name)
            if value != 0 and not TAMEST <= value <= 10:
                raise ValueError(f"{name} must be 0, or in {TAMEST}..10, not {value}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be in 0..2^63 - 1, not {self.seed}.")
