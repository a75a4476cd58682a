"""Reports of `eval/speed.py`'s processes -> a table, metrics.json and a plot."""

import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys

import numpy as np

BUSY = 0.5  # processors at work elsewhere, from which on timings are not to be trusted
SIDES = ("ours", "official")


ROWS = dict(
    seconds_per_frame="s per 80 ms frame",
    seconds_per_frame_predictor="  code predictor",
    seconds_per_frame_talker="  talker",
    seconds_per_frame_rest="  frame less these two",
    rtf_generation="real-time factor, codes",
    rtf_speech="  and their decoding",
    seconds_decode_10s="codec: decode 10 s, s",
    seconds_encode_10s="codec: encode 10 s, s",
    seconds_prefill="prefill, s",
    seconds_load="load, s",
    seconds_compile="compile, s",
    seconds_first_frame="process to first frame, s",
    seconds_first_frame_cached="  with cached programs",
    peak_memory_gib="peak memory, GiB",
)


def summarise(reports: list[dict]) -> dict:
    """Row -> side -> its values in the order they were measured."""
    rows = {key: {} for key in ROWS}
    for report in reports:
        again = report["task"] == "start" and report["n"] > 1
        for key in ROWS.keys() & report.keys():
            row = rows[f"{key}_cached" if again else key]
            row.setdefault(report["side"], []).append(report[key])
    return rows


def floor(reports: list[dict]) -> dict:
    """The least time a frame can take: bytes, rate (the best seen) and seconds."""
    ours = [r for r in reports if "bytes_per_frame" in r]
    size = ours[0]["bytes_per_frame"]
    rate = max(r["read_bytes_per_second"] for r in ours)
    seconds = sum(size.values()) / rate
    return dict(bytes=size, bytes_per_second=rate, seconds_per_frame=seconds)


def agreeing_frames(reports: list[dict]) -> int | None:
    """Frames from the start on in which both sides chose the same codes."""
    codes = {r["side"]: np.asarray(r["codes"]) for r in reports if "codes" in r}
    if "official" not in codes:
        return None
    same = (codes["ours"] == codes["official"]).all(axis=1)
    return len(same) if same.all() else int(same.argmin())


def warnings(load_at_start: float, reports: list[dict]) -> list[str]:
    """What was at work besides; the load average of later runs is our own work's."""
    found = []
    if load_at_start > BUSY:
        found.append(f"machine not idle: load average {load_at_start:.2f} at the start")
    return found + [
        f"machine not idle: {r['others']:.1f} processors busy elsewhere during "
        f"{r['side']} {r['task']} {r['n']}"
        for r in reports
        if r["others"] > BUSY
    ]


def machine() -> dict:
    """Processor, cores and memory."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [l.split(": ")[1] for l in lines if l.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return dict(
        processor=names[0] if names else platform.machine(),
        cores=os.cpu_count(),
        memory_gib=round(memory, 1),
    )


def table(metrics: dict) -> str:
    """The rows for people: every value, and the ratio of the medians."""
    lines = [f"{'':28}{'ours':22}{'official':22}official / ours"]
    for key, row in metrics["rows"].items():
        cells = [" ".join(f"{v:.4g}" for v in row.get(side, ())) for side in SIDES]
        medians = [statistics.median(row[side]) for side in SIDES if side in row]
        both = len(medians) == 2 and min(medians) > 0
        ratio = f"{medians[1] / medians[0]:.2f}" if both else ""
        lines.append(f"{ROWS[key]:28}{cells[0]:22}{cells[1]:22}{ratio}".rstrip())
    return "\n".join([*lines, *notes(metrics)])


def notes(metrics: dict) -> list[str]:
    """The lines below the table: floor, agreement, warnings, where and with what."""
    least, host, job = metrics["floor"], metrics["machine"], metrics["job"]
    times = [
        f"{side} {statistics.median(v) / least['seconds_per_frame']:.2f} times that"
        for side, v in metrics["rows"]["seconds_per_frame"].items()
    ]
    lines = [
        f"floor: {sum(least['bytes'].values()) / 1e9:.3g} GB per frame at "
        f"{least['bytes_per_second'] / 1e9:.3g} GB/s = "
        f"{least['seconds_per_frame']:.4g} s; {', '.join(times)}"
    ]
    if (frames := metrics["agreeing_frames"]) is not None:
        lines.append(f"same codes in the first {frames} of {job['frames']} frames")
    lines += [f"WARNING: {text}" for text in metrics["warnings"]]
    for side, versions in metrics["versions"].items():
        names = ", ".join(f"{name} {version}" for name, version in versions.items())
        codec = f"codec {metrics['codec_dtypes'][side]}"
        lines.append(f"{side}: {names}; {codec}, on {metrics['devices'][side]}")
    where = f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB"
    lines.append(f"{where}; {job['threads']} threads, model {job['dtype']}")
    return [*lines, f"{metrics['date']}  {metrics['command']}"]


def plot(metrics: dict, path: pathlib.Path) -> None:
    """Bars of a frame's parts beside the floor, and of the codec; medians."""
    from matplotlib import figure  # here: it is optional

    picture = figure.Figure(figsize=(9, 3), layout="constrained")
    axes = picture.subplots(1, 2)
    frame = [f"seconds_per_frame_{part}" for part in ("predictor", "talker", "rest")]
    for axis, keys in zip(axes, (frame, ["seconds_decode_10s", "seconds_encode_10s"])):
        start = dict.fromkeys(SIDES, 0.0)
        for key in keys:
            row = metrics["rows"][key]
            width = {s: max(0.0, statistics.median(v)) for s, v in row.items()}
            left = [start[side] for side in width]
            label = ROWS[key].strip()
            axis.barh(list(width), list(width.values()), left=left, label=label)
            start |= {side: start[side] + value for side, value in width.items()}
    axes[0].axvline(metrics["floor"]["seconds_per_frame"], color="k", label="floor")
    axes[0].set_xlabel("seconds per 80 ms frame")
    axes[1].set_xlabel("seconds")
    for axis in axes:
        axis.legend(fontsize="small")
    picture.savefig(path)


def write(metrics: dict, out: pathlib.Path) -> None:
    """metrics.json and, where matplotlib is installed, speed.png."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib"):
        plot(metrics, out / "speed.png")
    else:
        print("no picture: matplotlib is not installed (extra eval)", file=sys.stderr)
