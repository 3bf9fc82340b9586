"""Characters in messages: how one is named, which known ones are like it, and how a text is typed in a shell."""

import shlex
import unicodedata

MOST_NEAR = 5
_PLAIN = {
    "'": "‘’‚‛′`´", '"': "“”„‟″«»", "-": "‐‑‒–—―−\u00ad", "...": "…", " ": "\u00a0\u2007\u202f\u3000\t",
    "\n": "\r\v\f\x85\u2028\u2029",
}  # fmt: skip
_PLAIN_OF = {character: plain for plain, characters in _PLAIN.items() for character in characters}
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}


def named(character: str) -> str:
    """Such as 'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE); only the code point of what does not show alone."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # what Python makes of bytes that it cannot decode
        return f"byte 0x{code - 0xDC00:02x} (not a character in this terminal's encoding)"
    name = " ".join([f"U+{code:04X}", *filter(None, [unicodedata.name(character, "")])])
    alone = not unicodedata.combining(character) and (character.isprintable() or code < 0x20)
    return f"{character!r} ({name})" if alone else name


def near(text: str, position: int, known: str) -> list[str]:
    """What could be typed in place of a character of `text`: made of `known` ones, the most alike first."""
    character = text[position]
    with_last = text[max(0, position - 1) : position + 1]
    forms = [unicodedata.normalize(form, character) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    forms += [_PLAIN_OF.get(character, ""), character.swapcase()]
    if unicodedata.combining(character):
        forms.append(unicodedata.normalize("NFC", with_last))
    alike = [other for other in known if _folded(character) and _folded(other) == _folded(character)]
    whole = [form for form in forms if form and form not in (character, with_last) and set(form) <= set(known)]
    return list(dict.fromkeys([*whole, *alike]))[:MOST_NEAR]


def _folded(character: str) -> str:
    """Without case, accent and width; quotes, dashes and blanks of a kind are one."""
    parts = unicodedata.normalize("NFKD", _PLAIN_OF.get(character, character))
    return "".join(part for part in parts if not unicodedata.combining(part)).casefold()


def unknown(text: str, position: int, known: str) -> str:
    """A message about a character that is not among the `known` ones."""
    problem = f"{named(text[position])} at position {position} is not among the {len(known):,} characters that the "
    escape = text[position : position + 2]
    if {"\\n": "\n", "\\t": "\t", "\\r": "\r"}.get(escape, "none") in known:
        return f"{problem}model knows; for the line break or tab itself write $'...{escape}...', which the shell reads"
    alike = " or ".join(" followed by ".join(map(named, form)) for form in near(text, position, known))
    return f"{problem}model knows" + (f"; near ones are {alike}" if alike else "")


def shell_word(text: str) -> str:
    """The text as one word of a shell, on one line and without control characters."""
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character in _ESCAPES or character.isprintable():
        return _ESCAPES.get(character, character)
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
