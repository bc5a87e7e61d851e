"""Names of classes that differ only in spelling."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from kd_app.config.errors import quote_some

_NUMBER = re.compile(r"(-?)0*(\d+)(?:\.0+)?")


def normalize_spelling(name: str) -> str:
    """Return a name without what people overlook: case, spaces at its ends, the form of
    accents, invisible characters, and the zeros around a whole number.
    """
    visible = "".join(each for each in name if unicodedata.category(each) != "Cf")
    plain = unicodedata.normalize("NFC", visible).casefold().strip()
    return _NUMBER.sub(r"\1\2", plain) if _NUMBER.fullmatch(plain) else plain


def note_spellings(names: Iterable[str]) -> list[str]:
    """Return a note about names that differ only in spelling; nothing without them."""
    classes = sorted(set(names))
    counts = Counter(map(normalize_spelling, classes))
    same = [name for name in classes if counts[normalize_spelling(name)] > 1]
    if not same:
        return []
    return [
        f"The classes {quote_some(same)} differ only in spelling: case, spaces, the form of"
        " accents, invisible characters, or zeros of a number."
    ]
