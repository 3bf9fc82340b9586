"""metrics.jsonl: a line for each report, trimmed on resume; a line that was cut off is dropped."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from switch_lm.config.keys import ConfigError
from switch_lm.storage.metrics import MetricsFile, read, series


def written(run: Path, *rows: tuple[dict[str, float], int], first_step: int = 0) -> list[dict[str, Any]]:
    file = MetricsFile(run, first_step=first_step)
    for values, step in rows:
        file.write(values, step)
    file.close()
    return read(run)


def test_a_line_holds_step_time_and_numbers_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    written(tmp_path, ({"a": 0.1 + 0.2, "b": math.nan, "c": -math.inf}, 5), ({"a": 2}, 5), ({"a": 3.0}, 6))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    times = [line.pop("time") for line in lines]
    assert lines == [{"step": 5, "a": 0.1 + 0.2, "b": None, "c": None}, {"step": 5, "a": 2}, {"step": 6, "a": 3.0}]
    assert 0 <= times[0] <= times[1] <= times[2] < 5
    assert series(read(tmp_path), "a") == {5: 2.0, 6: 3.0} and math.isnan(series(read(tmp_path), "b")[5])


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, first_step=0)
    file.write({"a": 1.0}, 1)
    assert series(read(tmp_path), "a") == {1: 1.0}
    file.close()


def test_a_resumed_run_drops_what_it_writes_again_and_its_time_goes_on(tmp_path: Path) -> None:
    rows = [{"step": 1, "time": 100.0, "a": 1.0}, {"step": 2, "time": 200.0, "a": 2.0}, {"step": 3, "time": 300.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    *kept, last = written(tmp_path, ({"a": 3.5}, 3), first_step=3)
    assert kept == rows[:2] and last["a"] == 3.5 and 200.0 <= last["time"] < 205.0
    (only,) = written(tmp_path, ({"a": 1.0}, 1), first_step=0)
    assert only["time"] < 5.0


def test_a_last_line_that_was_cut_off_is_dropped_and_is_no_part_of_the_next(tmp_path: Path) -> None:
    written(tmp_path, ({"a": 1.0}, 1), ({"a": 2.0}, 2))
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    assert series(read(tmp_path), "a") == {1: 1.0}
    assert series(written(tmp_path, ({"a": 4.0}, 2), first_step=9), "a") == {1: 1.0, 2: 4.0}


@pytest.mark.parametrize(
    "line", ["", "[]", "3", '{"step": 1}', '{"step": "1", "time": 0}', '{"step": 1, "time": 0, "a']
)
def test_another_broken_line_is_an_error_with_file_number_and_fix(line: str, tmp_path: Path) -> None:
    good = '{"step": 1, "time": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(f"{good}{line}\n{good}")
    message = f"{tmp_path}/metrics.jsonl, line 2: not a JSON object with step and time; remove this line"
    for use in (lambda: read(tmp_path), lambda: MetricsFile(tmp_path, first_step=9)):
        with pytest.raises(ConfigError, match=re.escape(message)):
            use()
    assert (tmp_path / "metrics.jsonl").read_text() == f"{good}{line}\n{good}"


def test_a_full_disk_is_an_error_with_the_files_name(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, first_step=0)
    with Path("/dev/full").open("ab", buffering=0) as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "_file", full)
        with pytest.raises(OSError, match="No space left") as error:
            file.write({"a": 1.0}, 1)
    assert error.value.filename == str(tmp_path / "metrics.jsonl")
    file.close()
