"""The edit distance is that of the textbooks, of numbers and of words."""

from hypothesis import given, settings
from hypothesis import strategies as st

from audiovq.levenshtein import edit_distance

NUMBERS = st.lists(st.integers(0, 3), max_size=12)


def textbook(a: list[int], b: list[int]) -> int:
    table = [[i + j for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            kept = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, kept)
    return table[-1][-1]


@settings(max_examples=100, deadline=None)
@given(NUMBERS, NUMBERS)
def test_it_is_the_textbooks(a: list[int], b: list[int]) -> None:
    words = [[["a", "bc", "b c", ""][number] for number in numbers] for numbers in (a, b)]
    assert edit_distance(a, b) == edit_distance(*words) == textbook(a, b)
