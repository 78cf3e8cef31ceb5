"""Range coding: symbols to bytes by their whole-number frequencies, and back.

A symbol takes -log2(size / total) bits, where `size` of `total` is its share. All is done in whole
numbers, so that every machine writes and reads the same bytes. The range is kept 48 to 56 bits
wide, beside which a total of up to 2^40 is small, and bytes leave it one at a time: a chunk of a
live stream, which must be readable at once, ends within a byte of what its symbols take. (G. N. N.
Martin, Range encoding, 1979; the carry is added to bytes already written.)
"""

from collections.abc import Iterable

MOST_TOTAL = 1 << 40
"""Largest total of the frequencies of a symbol."""
_BITS = 56
_FULL = 1 << _BITS
_LEAST = _FULL >> 8
_TOP = _BITS - 8


def encode_symbols(symbols: Iterable[tuple[int, int, int]]) -> bytes:
    """The bytes of symbols, each of which is (start, size, total).

    The symbol has the share from `start` up to `start + size` of `total`: size >= 1, start + size
    <= total <= `MOST_TOTAL`. Zeros at the end are left out: `Decoder` reads on in zeros.
    """
    out = bytearray()
    low, width = 0, _FULL  # the number that is written lies in low .. low + width - 1
    for start, size, total in symbols:
        step = width // total
        low += step * start
        width = step * size
        while width < _LEAST:
            if low >= _FULL:
                _carry(out)
                low -= _FULL
            out.append(low >> _TOP)
            low = (low << 8) % _FULL
            width <<= 8
    # Of the numbers that are left, one with as many zero bits at the end as there can be.
    for n_zeros in range(_BITS, -1, -1):
        number = -(-low >> n_zeros) << n_zeros
        if number < low + width:
            break
    if number >= _FULL:
        _carry(out)
    out += (number % _FULL).to_bytes(_BITS // 8, "big")
    return bytes(out.rstrip(b"\0"))


def _carry(out: bytearray) -> None:
    """Add 1 to the number that the bytes are."""
    at = len(out) - 1
    while out[at] == 0xFF:
        out[at] = 0
        at -= 1
    out[at] += 1


class Decoder:
    """Gives back what `encode_symbols` was given.

    For each symbol, `target` says where in its total it lies, and `take` goes on to the next one.
    Bytes of anything else are some symbols as well.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = _BITS // 8
        self._number = int.from_bytes(data[: self._at].ljust(self._at, b"\0"), "big")
        self._width = _FULL

    def target(self, total: int) -> int:
        """A number in 0 .. total - 1 that lies in the share of the symbol."""
        target = self._number // (self._width // total)
        return target if target < total else total - 1

    def take(self, start: int, size: int, total: int) -> None:
        """Pass over the symbol with that share."""
        step = self._width // total
        self._number -= step * start
        self._width = step * size
        while self._width < _LEAST:
            byte = self._data[self._at] if self._at < len(self._data) else 0
            self._number = (self._number << 8 | byte) % _FULL
            self._width <<= 8
            self._at += 1
