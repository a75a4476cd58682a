"""What became of clips: counts for a done-marker, and their sum for a corpus."""

import collections
import json
from pathlib import Path

from data.preparation import cleaning

NAMED = 100  # clips that report.json names for each reason; a done-marker names all


class Tally:
    """Of one shard."""

    def __init__(self):
        self.kept, self.seconds = 0, 0.0
        self.dropped = collections.defaultdict(list)
        self.unreadable = {}
        self.marked, self.tiers = collections.Counter(), collections.Counter()
        self.languages = collections.defaultdict(lambda: [0, 0.0])

    def drop(self, take: cleaning.Take, reason: str) -> None:
        """A clip is left out."""
        self.dropped[reason].append(take.clip.id)
        if take.detail:
            self.unreadable[take.clip.id] = take.detail

    def keep(self, take: cleaning.Take, tier: str, seconds: float) -> None:
        """A clip is taken."""
        self.kept += 1
        self.seconds += seconds
        self.tiers[tier] += 1
        self.marked.update(take.marks)
        language = self.languages[take.clip.language]
        language[0] += 1
        language[1] += seconds

    @property
    def clips(self) -> int:
        return self.kept + sum(map(len, self.dropped.values()))

    def to_json(self) -> dict:
        return dict(
            clips=self.clips,
            kept=self.kept,
            seconds=round(self.seconds, 3),
            dropped={reason: len(ids) for reason, ids in sorted(self.dropped.items())},
            marked=dict(sorted(self.marked.items())),
            tiers=dict(sorted(self.tiers.items())),
            languages={
                name: dict(clips=count, seconds=round(seconds, 3))
                for name, (count, seconds) in sorted(self.languages.items())
            },
            names=dict(sorted(self.dropped.items())),
            unreadable=self.unreadable,
        )


def total(markers: list[Path]) -> dict:
    """The sum of the reports in some done-markers."""
    result = Tally().to_json()
    for path in markers:
        _add(result, json.loads(path.read_text("utf-8"))["report"])
    for names in result["names"].values():
        del names[NAMED:]
    result["unreadable"] = dict(list(result["unreadable"].items())[:NAMED])
    return result


def _add(whole: dict, part: dict) -> None:
    """Add numbers and lists, key by key and level by level."""
    for key, value in part.items():
        if isinstance(value, dict):
            _add(whole.setdefault(key, {}), value)
        elif isinstance(value, float):
            whole[key] = round(whole.get(key, 0) + value, 3)
        elif key in whole:
            whole[key] = whole[key] + value
        else:
            whole[key] = list(value) if isinstance(value, list) else value
