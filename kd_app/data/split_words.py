"""Names of splits in the names of folders and in the cells of tables."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

SPLIT_WORDS: Final[Mapping[str, str]] = {
    "train": "train", "training": "train", "trainval": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test", "holdout": "test",
    "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Accepted name -> split; see `match_splits` for 'eval'."""

EITHER: Final = ("eval", "evaluation")
"""Words for the test set, or for validation if there is also a test set."""
_WORD = "|".join(sorted(SPLIT_WORDS, key=len, reverse=True))
FILLER: Final = (
    "sets?|images?|imgs?|pics?|pictures?|photos?|data|dataset|seg|split|folder|dir|files?"
)
"""Words that say no more than that there are images."""
_COMPOUND = re.compile(f"(?:{FILLER})*({_WORD})(?:{FILLER})*")
_UNLABELED = re.compile(r"un[\W_]?label|unsup|unannotated|no[\W_]?labels?\b", re.IGNORECASE)
_HOLDOUT = re.compile(r"h[eo]ld[\W_]?out")


class SplitMatch(NamedTuple):
    """The split in a name, its word, and the words of the name that are left."""

    split: str
    word: str
    rest: str


def match_split(name: str) -> SplitMatch | None:
    """Return the split that a name contains.

    Words are separated by case, digits and punctuation: 'seg_train', 'TrainImages',
    'testset', 'val2017'. None without a split word, with words of two splits, or for
    images without labels.
    """
    if is_unlabeled_name(name):
        return None
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words, rest = [], []
    for part in re.split(r"[\W_\d]+", _HOLDOUT.sub("holdout", spaced)):
        match = _COMPOUND.fullmatch(part)
        if match:
            words.append(match[1])
        elif part and not re.fullmatch(FILLER, part):
            rest.append(part)
    splits = {SPLIT_WORDS[word] for word in words}
    return SplitMatch(splits.pop(), words[0], " ".join(rest)) if len(splits) == 1 else None


def is_unlabeled_name(name: str) -> bool:
    """Return whether a name means images without labels: 'unlabeled', 'unsup_train'."""
    return _UNLABELED.search(name) is not None


def match_splits(names: Iterable[str]) -> dict[str, SplitMatch]:
    """Return the matches of the names that contain a split.

    'eval' is the test set, but validation beside 'test'.
    """
    matches = {name: match for name in names if (match := match_split(name))}
    if any(match.split == "test" and match.word not in EITHER for match in matches.values()):
        for name, match in matches.items():
            if match.word in EITHER:
                matches[name] = match._replace(split="validation")
    return matches
