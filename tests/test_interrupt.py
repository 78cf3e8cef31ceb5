"""Laws of a wish to stop: the first signal waits, the second does not, others are as before."""

import os
import signal
import threading

import pytest

from audiovq.interrupt import SIGNALS, stop_wish


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_acts(number):
    def end(signum, frame):
        raise InterruptedError

    before = [signal.getsignal(other) for other in SIGNALS]
    old = signal.signal(number, end)
    try:
        with stop_wish() as wish:
            assert wish.signum == 0
            os.kill(os.getpid(), number)
            assert wish.signum == number
            with pytest.raises(InterruptedError):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is end
        with stop_wish():
            pass
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, old)
    assert [signal.getsignal(other) for other in SIGNALS] == before


def test_threads_note_nothing():
    found = []

    def work():
        with stop_wish() as wish:
            found.append(wish.signum)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]
