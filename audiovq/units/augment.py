"""What befalls speech on its way to a tokenizer: level, noise, rooms, filters, codecs, time, pitch.

`CONDITIONS` holds each by name. All take float32 samples [n] at 16 kHz and give back as many, in
line with the original, but for the speeds, which stretch time by a known factor. What is random
in them is drawn from a generator seeded by the condition's and the recording's names, so that the
same recording always meets the same noise.
"""

import importlib.util
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr

from audiovq.distortions import band_limited, has_opus, mix, power, reverberant, through_opus
from audiovq.hearing import SAMPLE_RATE

N_VOICES = 6
"""Recordings in a babble, where there are as many."""
N_ROOMS = 6
"""Rooms for each reverberation time, of which a recording meets one."""
_SPEED_OF_SOUND = 343.0

Wav = np.ndarray
"""float32 [n] at `SAMPLE_RATE`."""


@dataclass(frozen=True)
class Condition:
    """One change of the sound.

    `apply(wav, random, others)` returns the changed sound; `others` are other recordings, which
    babble alone mixes. `speed`: how much faster it goes than the original; it has n / speed
    samples. `needs`: a module that must be there.
    """

    says: str
    apply: Callable[[Wav, np.random.Generator, Sequence[Wav]], Wav]
    speed: float = 1.0
    needs: str | None = None
    needs_others: bool = False


def augment(name: str, wav: Wav, recording: str, others: Sequence[Wav] = ()) -> Wav:
    """Sound under a condition of `CONDITIONS`: float32 [n / speed].

    recording: the name that the random numbers are seeded by. `others`: other recordings, for
    babble. Raises `ValueError` for an unknown condition, for babble without others, and where
    `missing` has something to say.
    """
    wav = np.asarray(wav, dtype=np.float32)
    if wav.ndim != 1 or not len(wav):
        raise ValueError(f"wav must be samples [n], n >= 1, not {wav.shape}.")
    if absent := missing(name):
        raise ValueError(absent)
    condition = CONDITIONS[name]
    if condition.needs_others and not any(np.any(other) for other in others):
        raise ValueError(f"{name} mixes other recordings of the folder, and there is none.")
    random = np.random.default_rng(zlib.crc32(f"{name}\n{recording}".encode()))
    out = condition.apply(wav, random, others).astype(np.float32)
    return fit(out, max(1, round(len(wav) / condition.speed)))


def missing(name: str) -> str | None:
    """A sentence that says what a condition lacks here, or None if it can be made.

    Raises `ValueError` for an unknown condition.
    """
    if name not in CONDITIONS:
        raise ValueError(f"{name!r} is no condition; give some of {', '.join(CONDITIONS)}.")
    needs = CONDITIONS[name].needs
    if needs == "opus":
        if has_opus():
            return None
        return f"{name} needs soundfile 0.13 with Opus; pip install -U soundfile."
    if needs is None or importlib.util.find_spec(needs) is not None:
        return None
    return f"{name} needs {needs}; pip install '.[robust]'."


def fit(wav: Wav, n: int) -> Wav:
    """Cut `wav` to n samples or fill it up with silence."""
    return np.pad(wav[:n], (0, max(0, n - len(wav))))


def _level(db: float) -> Condition:
    return Condition(
        f"{db:+g} dB, without clipping", lambda wav, *_: wav * np.float32(10 ** (db / 20))
    )


def _white(snr_db: float) -> Condition:
    return Condition(
        f"white noise at {snr_db:g} dB SNR",
        lambda wav, random, _: mix(wav, random.standard_normal(len(wav)), snr_db),
    )


def _babble(snr_db: float) -> Condition:
    def apply(wav: Wav, random: np.random.Generator, others: Sequence[Wav]) -> Wav:
        voices = [other for other in others if np.any(other)]
        chosen = random.choice(len(voices), min(N_VOICES, len(voices)), replace=False)
        noise = np.zeros(len(wav))
        for voice in (voices[i] for i in chosen):
            # Each goes round from a place of its own, as loud as the others.
            at = (np.arange(len(wav)) + random.integers(len(voice))) % len(voice)
            noise += voice[at] / np.sqrt(power(voice))
        return mix(wav, noise, snr_db)

    says = f"up to {N_VOICES} other recordings at {snr_db:g} dB SNR together"
    return Condition(says, apply, needs_others=True)


@cache
def _room(rt60: float, index: int) -> np.ndarray:
    """The response of a room, from the direct sound on, by the image source method."""
    import pyroomacoustics

    random = np.random.default_rng(index)
    size = random.uniform([5, 4, 2.6], [8, 6, 3.2])
    absorption, order = pyroomacoustics.inverse_sabine(rt60, size)
    source = random.uniform([1.5, 1.5, 1.2], [*(size[:2] - 1.5), 1.8])
    angle, distance = random.uniform(0, 2 * np.pi), random.uniform(0.8, 1.4)
    microphone = source + distance * np.array([np.cos(angle), np.sin(angle), 0])
    room = pyroomacoustics.ShoeBox(
        size,
        fs=SAMPLE_RATE,
        materials=pyroomacoustics.Material(absorption),
        max_order=min(order, 60),  # images grow with its cube; beyond lies the tail's last end
    )
    room.add_source(source)
    room.add_microphone(microphone)
    room.compute_rir()
    delay = pyroomacoustics.constants.get("frac_delay_length") // 2
    direct = round(delay + distance / _SPEED_OF_SOUND * SAMPLE_RATE)
    return room.rir[0][0][direct:][: round(rt60 * SAMPLE_RATE)]


def _reverberation(rt60: float) -> Condition:
    def apply(wav: Wav, random: np.random.Generator, _: Sequence[Wav]) -> Wav:
        return reverberant(wav, _room(rt60, int(random.integers(N_ROOMS))))

    says = f"a room with {rt60:g} s of reverberation, about a metre from the microphone"
    return Condition(says, apply, needs="pyroomacoustics")


def _telephone(wav: Wav, *_: object) -> Wav:
    return band_limited(wav, 300, 3400, SAMPLE_RATE)


def _opus(kbps: float) -> Condition:
    return Condition(
        f"Opus at {kbps:g} kbit/s",
        lambda wav, *_: through_opus(wav, kbps, SAMPLE_RATE),
        needs="opus",
    )


def _late(milliseconds: float) -> Condition:
    n = round(milliseconds * SAMPLE_RATE / 1000)
    return Condition(
        f"{milliseconds:g} ms later, compared on the same frames",
        lambda wav, *_: np.pad(wav, (n, 0))[: len(wav)],
    )


def _speed(speed: float) -> Condition:
    return Condition(
        f"played {speed:g} times as fast, pitch and all",
        lambda wav, *_: soxr.resample(wav, SAMPLE_RATE * speed, SAMPLE_RATE),
        speed=speed,
    )


def _pitch(semitones: float) -> Condition:
    def apply(wav: Wav, *_: object) -> Wav:
        from librosa.effects import pitch_shift

        padded = fit(wav, max(len(wav), 2048))  # librosa's window
        return pitch_shift(padded, sr=SAMPLE_RATE, n_steps=semitones, res_type="soxr_hq")

    return Condition(f"{semitones:+g} semitones, with the formants", apply)


CONDITIONS: dict[str, Condition] = {
    **{f"level{db:+d}": _level(db) for db in (6, 3, -3, -6, -12, -20)},
    **{f"white-{snr}": _white(snr) for snr in (20, 10)},
    **{f"babble-{snr}": _babble(snr) for snr in (20, 10)},
    "room-0.3": _reverberation(0.3),
    "room-0.6": _reverberation(0.6),
    "telephone": Condition("300 to 3400 Hz", _telephone),
    **{f"opus-{kbps}": _opus(kbps) for kbps in (24, 12)},
    **{f"late-{ms}ms": _late(ms) for ms in (5, 10)},
    "speed+5": _speed(1.05),
    "speed-5": _speed(0.95),
    "pitch+2": _pitch(2),
    "pitch-2": _pitch(-2),
}
"""Conditions by name."""
