"""Collectives in a compiled program's text, with what they send.

A loop's body stands once in the text: here it counts as often as it runs.  TPU programs
show one collective several times, once for each fusion that works beside it; its
channel id tells that it is one.
"""

import dataclasses
import math
import re

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
BITS = dict(pred=8, bf16=16, f16=16, f32=32, f64=64, c64=64, c128=128)  # else in name

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations?|branch_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_KNOWN = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_BOUND = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")
_ARRAY_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LIST_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\S+)? \{(.*?)\}"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: one of KINDS.
        size: bytes of its result on one device.
        group: devices that take part.
        times: how often a step runs it.
    """

    kind: str
    size: int
    group: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, by ring algorithms."""
        share = (self.group - 1) / self.group
        factor = {
            "all-reduce": 2 * share,
            "reduce-scatter": self.group - 1,  # of its result, a part of the whole
            "collective-permute": 1,
        }
        return self.times * self.size * factor.get(self.kind, share)


def collectives(text: str, devices: int) -> tuple[Collective, ...]:
    """All collectives of more than one device.

    text: of `Compiled.as_text()`; devices: how many run the program.
    """
    bodies = _computations(text)
    times = _times(bodies)
    found = {}
    for name, lines in bodies.items():
        for number, line in enumerate(lines):
            match = _COLLECTIVE.search(line)
            if not match:
                continue
            made = _read(line, match, devices, times.get(name, 1))
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel[1] if channel else (name, number)
            if made.group > 1 and key not in found:
                found[key] = made
    return tuple(found.values())


def _read(line: str, match, devices: int, times: int) -> Collective:
    result, kind, started = match.groups()
    group = 2 if kind == "collective-permute" else _group(line, devices)
    size = _bytes(result)
    if started and kind == "all-gather":
        size = size * group // (group + 1)  # its result holds the operands as well
    elif started and kind == "collective-permute":
        size //= 2
    return Collective(kind, size, group, times)


def _bytes(shape: str) -> int:
    total = 0
    for name, dims in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", shape)):
        bits = BITS.get(name) or int(re.search(r"\d+", name)[0])
        total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return total


def _group(line: str, devices: int) -> int:
    """Devices in a group; the ways to write them differ between compilers."""
    if match := _ARRAY_GROUPS.search(line):
        return int(match[1])
    if match := _LIST_GROUPS.search(line):
        return len(match[1].split(","))
    if match := _MESH_GROUPS.search(line):
        sizes = {k: int(v) for k, v in re.findall(r"'(\w+)'=(\d+)", match[1])}
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in parts)
    return devices


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines of each computation."""
    bodies, lines = {}, []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = bodies[match[1]] = []
        else:
            lines.append(line)
    return bodies


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs, given that nothing is called in two places."""
    called: dict[str, list[tuple[str, int]]] = {name: [] for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            loop = _LOOP.search(line)
            for names in _CALLED.findall(line):
                for inner in re.findall(r"[\w.\-]+", names):
                    is_body = loop is not None and inner == loop[2]
                    count = _trips(line, bodies.get(loop[1], [])) if is_body else 1
                    called.setdefault(inner, []).append((name, count))
    times: dict[str, int] = {}

    def visit(name: str) -> int:
        if name not in times:
            outer = [visit(caller) * count for caller, count in called[name]]
            times[name] = max(outer, default=1)
        return times[name]

    for name in bodies:
        visit(name)
    return times


def _trips(line: str, condition: list[str]) -> int:
    """Rounds of a loop: what the compiler says, or what its condition compares with."""
    if match := _KNOWN.search(line):
        return int(match[1])
    bounds = {int(n) for text in condition for n in _BOUND.findall(text)}
    return bounds.pop() if len(bounds) == 1 else 1
