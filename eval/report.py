"""Rows of figures -> markdown, JSON; codes and waves -> pictures and sounds."""

import json
import pathlib
import platform
import re
import sys
from collections.abc import Callable

import jax
import numpy as np

from qwen3tts_jax.audio import io as audio_io

NONE = "–"


def percent(found: dict | None) -> str:
    """An error rate with its 95 % interval, in percent."""
    if found is None:
        return NONE
    value = found.get("pooled", found.get("value"))
    return f"{100 * value:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def mean(digits: int) -> Callable[[dict | None], str]:
    """A mean with its standard error; with the number of values where it is not n."""

    def cell(found: dict | None) -> str:
        if found is None:
            return NONE
        error = found["error"]
        sure = "" if np.isnan(error) else f" ±{error:.{digits}f}"
        return f"{found['value']:.{digits}f}{sure}"

    return cell


def plain(value) -> str:
    return NONE if value is None else str(value)


def kinds(found: dict | None) -> str:
    """Substitutions, deletions, insertions."""
    if found is None:
        return NONE
    return f"{found['substitutions']}/{found['deletions']}/{found['insertions']}"


# heading -> (key of a row, how its cell is written)
QUALITY = {
    "n": ("n", plain),
    "bit/s": ("bits_per_second", mean(0)),
    "WER %": ("wer", percent),
    "CER %": ("cer", percent),
    "WER increase, points": ("wer_increase", percent),
    "STOI": ("stoi", mean(3)),
    "PESQ-wb": ("pesq", mean(2)),
    "mel distance": ("mel", mean(3)),
    "speaker cosine": ("cosine", mean(3)),
    "OVRL": ("ovrl", mean(2)),
    "P808": ("p808", mean(2)),
}
SPEECH = {
    "n": ("n", plain),
    "WER %": ("wer", percent),
    "S/D/I": ("wer", kinds),
    "CER %": ("cer", percent),
    "not stopped": ("failures", plain),
    "speaker cosine": ("cosine", mean(3)),
    "rate ratio": ("rate_ratio", mean(2)),
    "OVRL": ("ovrl", mean(2)),
    "P808": ("p808", mean(2)),
    "seconds": ("seconds", mean(1)),
}


def markdown(rows: list[dict], columns: dict, *, first: dict[str, str]) -> str:
    """A table; columns without any figure are left out.

    first: heading -> key of the columns that name a row.
    """
    used = {
        heading: (key, cell)
        for heading, (key, cell) in columns.items()
        if any(row.get(key) is not None for row in rows)
    }
    lines = [[*first, *used], ["---"] * len(first) + ["---:"] * len(used)]
    for row in rows:
        names = [str(row[key]) or NONE for key in first.values()]
        lines.append(names + [cell(row.get(key)) for key, cell in used.values()])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def codebook_table(found: dict) -> str:
    """Use of each codebook."""
    rows = [
        f"| {i} | {100 * used:.1f} | {perplexity:.0f} |"
        for i, (used, perplexity) in enumerate(zip(found["used"], found["perplexity"]))
    ]
    head = ["| codebook | used, % | perplexity |", "| --- | ---: | ---: |"]
    note = (
        f"{found['frames']} frames, {found['size']} entries; so many uniform draws "
        f"would find {100 * found['chance']:.1f} % of them.  Mean used: "
        f"{100 * np.mean(found['used']):.1f} %."
    )
    return "\n".join([*head, *rows, "", note])


def environment(command: list[str]) -> dict:
    """What the figures were made with."""
    return dict(
        command=" ".join(command),
        python=platform.python_version(),
        jax=jax.__version__,
        numpy=np.__version__,
        device=jax.devices()[0].device_kind,
    )


def write(out: pathlib.Path, name: str, text: str, figures: dict) -> None:
    """OUT/NAME.md, OUT/NAME.json; the text is printed too."""
    print(text)
    (out / f"{name}.md").write_text(text + "\n")
    lines = json.dumps(_finite(figures), indent=1, ensure_ascii=False)
    (out / f"{name}.json").write_text(lines + "\n")
    print(f"written: {out / name}.md, .json", file=sys.stderr)


def _finite(value):
    """JSON has no nan: null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_samples(out: pathlib.Path, waves: dict[tuple[str, str], np.ndarray]) -> None:
    """OUT/samples/ID--SYSTEM.wav of (id, system) -> float32 [W] at 24 kHz."""
    folder = out / "samples"
    folder.mkdir(exist_ok=True)
    for names, wave in waves.items():
        safe = "--".join(re.sub(r"[^\w.]+", "_", name) for name in names)
        audio_io.write_wav(folder / f"{safe}.wav", wave)
