"""How long something takes, as people write it (90s, 5m, 1h30m, 00:20:00) and in words for messages."""

import math
import re

from switch_lm.config.keys import Rule

CLOCK = re.compile(r"(\d{1,5}):([0-5]\d):([0-5]\d)")
UNITS = re.compile(r"(?=.)(?:(\d{1,5})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?")


def seconds_of(text: str) -> float:
    """Of hours:minutes:seconds or of numbers with h, m and s; nan for anything else."""
    match = CLOCK.fullmatch(text) or UNITS.fullmatch(text)
    if match is None:
        return math.nan
    hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return float(3600 * hours + 60 * minutes + seconds)


A_TIME = Rule(
    "must be a time as hours:minutes:seconds, such as 00:20:00, or with units, such as 20m, 90s or 1h30m, or null",
    lambda text: seconds_of(text) > 0,
)


def in_words(seconds: float) -> str:
    """Rounded to what a reader can use: 20 s, 14 minutes, 2.5 hours."""
    if seconds < 120:
        return f"{max(1.0, seconds):.0f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} minutes".replace(".0 ", " ")
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
