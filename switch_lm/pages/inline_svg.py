"""How an SVG file of matplotlib becomes part of a page, next to others of its kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

DROPPED = {"metadata", "style", "title"}  # the style would hold for the whole page; the title shows up as a tooltip


def inline(svg: str, *, name: str, alt: str, colours: Mapping[str, str]) -> str:
    """The drawing as one `<svg>` element that takes its width, its font and the given colours from the page.

    Identifiers that nothing refers to are left out, the others begin with `name`.
    """
    root = ElementTree.fromstring(svg)
    _clean(root)
    prefix = re.sub(r"\W", "-", name)
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                if value in used:
                    element.set(key, f"{prefix}-{value}")
                else:
                    del element.attrib[key]
            elif key in {"href", "clip-path"}:
                element.set(key, value.replace("#", f"#{prefix}-"))
            elif key == "style":
                element.set(key, _restyled(value, colours))
            elif key == "d":
                element.set(key, " ".join(value.split()))
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": alt})
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element) -> None:
    """Takes away names of namespaces, white space, what draws nothing and turns by nothing."""
    element.tag = element.tag.rpartition("}")[2]
    for key in list(element.attrib):
        if "}" in key:
            element.set(key.rpartition("}")[2], element.attrib.pop(key))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if element.tag != "text":
        element.text = None
    for child in list(element):
        child.tail = None
        _clean(child)
        if child.tag in DROPPED or (child.tag in {"g", "defs"} and not len(child)):
            element.remove(child)


def _restyled(style: str, colours: Mapping[str, str]) -> str:
    """The style with the page's colours and without a font's name."""
    for ours, theirs in colours.items():
        style = re.sub(re.escape(ours), theirs, style, flags=re.IGNORECASE)
    kept = [part for part in style.split("; ") if not part.startswith("font-family")]
    return "; ".join(kept)
