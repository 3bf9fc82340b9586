"""Row 4 on a long text: its memory, the wait for the plan, and a stop in its validation."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from processes import TEXT, Started

MEASURED = """
import atexit, resource
from switch_lm.training import run
from switch_lm.training.module import SwitchModule
step = SwitchModule.validation_step
def measured(self, batch, number):
    step(self, batch, number)
    print("validating", flush=True) if number == 3 else None
SwitchModule.validation_step = measured
atexit.register(lambda: print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
print("imported", flush=True)
"""


@pytest.mark.row(4)
@pytest.mark.long
def test_twenty_million_characters_take_three_bytes_each_and_a_signal_acts_in_their_validation(tmp_path: Path) -> None:
    peaks = []
    for length in (1_000_000, 20_000_000):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "text.txt").write_text((TEXT * (length // len(TEXT) + 1))[:length])
        run = Started(folder, "trainer.max_steps=2", before=MEASURED)
        for mark, within in (("imported", 60), ("What will be trained", 5), ("validating", 60)):
            began = time.monotonic()
            run.wait_for(mark)
            assert time.monotonic() - began < within, mark
        run.process.send_signal(signal.SIGTERM)
        run.wait_for("Stopped by SIGTERM: everything up to step 2 of 2 is saved")
        assert time.monotonic() - began < within + 2
        assert run.process.wait(60) == 143
        run.wait_for("peak")
        peaks.append(1024 * int(re.findall(r"peak (\d+)", run.output)[0]))
    assert peaks[1] - peaks[0] < 3 * 19_000_000
