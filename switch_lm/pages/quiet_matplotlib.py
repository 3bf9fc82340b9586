"""Imports matplotlib, which warns twice where its folders cannot be written, and uses one of its own until the end."""

import logging


def _import_quietly() -> None:
    log = logging.getLogger("matplotlib")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        import matplotlib.font_manager  # noqa: F401  with it both of its folders have been looked for
    finally:
        log.setLevel(before)


_import_quietly()
