"""The report of scripts/gpu_check.sh, from made-up files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "gpu_report.py"


def test_the_report_judges_goals_and_names_what_is_missing(tmp_path: Path) -> None:
    timed = {"dense, eager": 1.0, "dense, recorded": 0.5, "ours, capacity factor 1.0, recorded": 0.7}
    sized = {"case": "layer, bf16, 8 experts", "tokens_per_second": 1}
    rows = [sized | {"name": name, "median_seconds": s, "seconds": [s]} for name, s in timed.items()]
    (tmp_path / "gpu_bench.json").write_text(json.dumps({"rows": rows}))
    metrics = tmp_path / "runs" / "gpu" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    lines = [{"step": 5, "val/loss": 1.5}, {"step": 9, "val/loss": 1.4}, {"step": 9, "perf/training_seconds": 70.0}]
    metrics.write_text("\n".join(map(json.dumps, lines)))
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True)
    report = (tmp_path / "report.md").read_text()
    assert "| <= 1.6 | 1.40 | met |" in report and "| <= 2.5 | - | not measured |" in report
    assert "| <= 60 s | 70.00 s | not met |" in report and "the run `default` has no result.json" in report
