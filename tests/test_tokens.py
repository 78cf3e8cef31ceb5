"""What a stream of tokens says of itself."""

import pytest
from some_codes import HEADER

from audiovq import Header


@pytest.mark.parametrize(
    "change",
    [{"n_q": 0}, {"n_q": True}, {"n_samples": -1}, {"codebook_size": 65_537}, {"model": 3}],
)
def test_a_header_checks_its_fields(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Header(**(HEADER.__dict__ | change))
