"""How the characters of a text are shown where they would not be seen, or would change what stands around them."""

import re
import unicodedata

SPECIAL = {"\n": "\\n", "\t": "\\t", " ": "␣", "␣": "\\u2423", "◌": "\\u25cc"}  # two stand for others
JOINERS = "\u200c\u200d"
# Printable by Python's rules, but blank: Unicode's Default_Ignorable_Code_Point, and braille without a dot.
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
SCRIPTS = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefe\U00010800-\U00010fff\U0001e800-\U0001efff"  # right to left
RIGHT_TO_LEFT = re.compile(f"[{SCRIPTS}]+(?:[-_./ ]?[{SCRIPTS}]+)*")


def visible(character: str) -> str:
    """One character as a name of its own: on an axis, in a table or in a sentence."""
    if not character.isprintable() or BLANK.match(character):
        shown = _escaped(character)
    else:
        shown = f"◌{character}" if unicodedata.category(character).startswith("M") else character  # a mark needs a base
    return SPECIAL.get(character, shown)


def needs_a_base(character: str) -> bool:
    """Whether it is seen only with the character before it, or not at all."""
    command = harmless(character) != character or character in JOINERS
    return command or bool(BLANK.match(character)) or unicodedata.category(character).startswith("M")


def harmless(text: str) -> str:
    """The text with an escape such as \\x1b for each character that is a command; line breaks and tabs stay.

    Commands are the control characters, those that change the direction of writing, and what no file may hold. What
    joins a letter or a picture to the next one is none.
    """
    return text if text.isprintable() else "".join(_escaped(c) if _is_command(c) else c for c in text)


def isolated(text: str, opening: str = "\u2068", closing: str = "\u2069") -> str:
    """The text with each run of a right-to-left script between two marks, so that it does not reorder its sentence."""
    return RIGHT_TO_LEFT.sub(lambda run: f"{opening}{run[0]}{closing}", text)


def _is_command(character: str) -> bool:
    if character in "\n\t" or character in JOINERS:
        return False
    never = ord(character) & 0xFFFE == 0xFFFE or "\ufdd0" <= character <= "\ufdef"
    return never or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return ascii(character)[1:-1]
