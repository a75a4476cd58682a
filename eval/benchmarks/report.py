"""Reports of `speed.py`'s processes -> a table, metrics.json and a plot."""

import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys

import numpy as np

BUSY = 0.5  # processors at work elsewhere, from which on timings are not to be trusted
LABEL, COLUMN = 28, 24  # widths in the table

ROWS = dict(  # what is in braces: see `label`
    seconds_per_frame="s per {frame:g} ms frame",
    seconds_per_frame_predictor="  code predictor",
    seconds_per_frame_talker="  talker",
    seconds_per_frame_rest="  frame less these two",
    rtf_generation="real-time factor, codes",
    rtf_speech="  and their decoding",
    seconds_per_frame_codec_1="codec, s per frame",
    seconds_per_frame_codec_8="  8 frames at once",
    seconds_per_packet_codec="codec, s per packet of 8",
    seconds_per_packet_codec_exact="  with exact lookahead",
    seconds_decode="codec: decode {sound:g} s, s",
    seconds_dit="  DiT, 10 steps",
    seconds_bigvgan="  BigVGAN",
    seconds_encode="codec: encode {sound:g} s, s",
    seconds_codes="codec: codes alone, s",
    seconds_prefill="prefill, s",
    seconds_load="load, s",
    seconds_compile="compile, s",
    seconds_first_frame="process to first frame, s",
    seconds_first_frame_cached="  with cached programs",
    peak_memory_gib="peak memory, GiB",
)


STREAM_COLUMNS = {  # of the table of streams -> where it is in a report
    "streams": "concurrency",
    "first byte, s": "seconds_first_byte",
    "first audible": "seconds_first_audible",
    "s/frame-step": "seconds_per_frame_step",
    "audio s per s": "audio_seconds_per_second",
    "RTF of one": "rtf_stream",
    "peak GiB": "peak_memory_gib",
}
# Of the paper's table: concurrency -> (LM first, codec first, LM per packet, codec per
# packet, RTF); the last but one is that of the first packet.
# Source: technical report, arXiv 2601.15621, the table of efficiency.
PAPER = {
    (12.5, "0b6"): {
        1: (0.093, 0.004, None, 0.004, 0.288),
        3: (0.174, 0.005, None, 0.005, 0.338),
        6: (0.294, 0.005, None, 0.005, 0.434),
    },
    (12.5, "1b7"): {
        1: (0.097, 0.004, None, 0.004, 0.313),
        3: (0.190, 0.005, None, 0.005, 0.363),
        6: (0.328, 0.005, None, 0.005, 0.463),
    },
    (25.0, "0b6"): {
        1: (0.113, 0.025, 0.050, 0.025, 0.234),
        3: (0.198, 0.062, 0.059, 0.062, 0.378),
        6: (0.334, 0.147, 0.080, 0.147, 0.709),
    },
    (25.0, "1b7"): {
        1: (0.125, 0.025, 0.056, 0.025, 0.253),
        3: (0.222, 0.062, 0.064, 0.062, 0.394),
        6: (0.376, 0.147, 0.085, 0.147, 0.725),
    },
}
LATENCY_COLUMNS = (
    *("streams", "LM first + codec, s", "first packet, s"),
    *("LM/packet", "codec/packet", "packet, s", "RTF"),
)
FIRST_COLUMNS = {
    "frames": "frames",
    "latency, s": "seconds_first_packet",
    "length, s": "packet_seconds",
    "stall, s": "stall_seconds",
    "max difference": "largest_difference",
    "DNSMOS ovrl/p808": "dnsmos",
}


def collect(reports: list[dict]) -> dict:
    """What the reports say, put together: rows, floors, streams, packets."""
    return dict(
        rows=summarise(reports),
        floors=floors(reports),
        agreeing_frames=agreeing_frames(reports),
        streams=streams(reports),
        weights={r["side"]: r["agreement"] for r in reports if "agreement" in r},
        packets=[
            dict(side=r["side"]) | p for r in reports for p in r.get("packets", ())
        ],
        first_packets=[p for r in reports for p in r.get("first_packets", ())],
        devices={r["side"]: r["device"] for r in reports},
        codec_dtypes={r["side"]: r["codec_dtype"] for r in reports if "codes" in r},
        versions={r["side"]: r["versions"] for r in reports},
    )


def summarise(reports: list[dict]) -> dict:
    """Row -> side -> its values in the order they were measured."""
    rows = {key: {} for key in ROWS}
    for report in reports:
        if report["task"] not in ("measure", "start"):
            continue
        again = report["task"] == "start" and report["n"] > 1
        for key in ROWS.keys() & report.keys():
            row = rows[f"{key}_cached" if again else key]
            row.setdefault(report["side"], []).append(report[key])
    return rows


def floors(reports: list[dict]) -> dict:
    """Side -> the least time its frame can take: bytes, rate (the best seen), seconds.

    A side that does not count its bytes is compared with ours.
    """
    counted = [r for r in reports if "bytes_per_frame" in r]
    rate = max(r["read_bytes_per_second"] for r in counted)
    found = {}
    for report in counted:
        size = report["bytes_per_frame"]
        seconds = sum(size.values()) / rate
        found[report["side"]] = dict(
            bytes=size, bytes_per_second=rate, seconds_per_frame=seconds
        )
    return found


def agreeing_frames(reports: list[dict]) -> dict[str, int]:
    """Side -> frames from the start on in which it chose the same codes as ours."""
    codes = {r["side"]: np.asarray(r["codes"]) for r in reports if "codes" in r}
    found = {}
    for side in codes.keys() - {"ours"}:
        same = (codes["ours"] == codes[side]).all(axis=1)
        found[side] = len(same) if same.all() else int(same.argmin())
    return dict(sorted(found.items()))


def streams(reports: list[dict]) -> list[dict]:
    """Every measurement of streams, with its side; of several the last."""
    found = {}
    for report in reports:
        for one in report.get("streams", ()):
            key = report["side"], one["packets"], one["concurrency"]
            found[key] = dict(side=report["side"]) | one
    return list(found.values())


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


def number(value) -> str:
    """A cell: a number, a few of them, a dict of them, a word, or nothing."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    values = value.values() if isinstance(value, dict) else value
    several = isinstance(value, dict | list)
    return " ".join(f"{v:.3g}" for v in (values if several else [value]))


def columns(cells: list[str], widths: list[int]) -> str:
    """One line of a table."""
    return "".join(f"{c:{w}}" for c, w in zip(cells, widths)).rstrip()


def table(metrics: dict) -> str:
    """For people: every value of every row, then streams, packets and notes."""
    sides, job = list(metrics["versions"]), metrics["job"]
    widths = [LABEL, *[COLUMN] * len(sides)]
    lines = [columns(["", *sides], widths)]
    for key, row in metrics["rows"].items():
        if row:
            cells = [cell(row, side) for side in sides]
            lines.append(columns([label(key, job), *cells], widths))
    if len(sides) > 1:
        lines.append("in brackets: median over that of ours")
    lines += stream_lines(metrics["streams"])
    lines += latency_lines(metrics["packets"], job)
    lines += packet_lines(metrics["first_packets"])
    lines += weight_lines(metrics["weights"])
    return "\n".join([*lines, *notes(metrics)])


def label(key: str, job: dict) -> str:
    """A row's name, with the milliseconds of a frame or the seconds of sound in it."""
    return ROWS[key].format(frame=1000 / job["frame_rate"], sound=job["codec_seconds"])


def cell(row: dict, side: str) -> str:
    """Values of one side, and the ratio of their median to that of ours."""
    text = " ".join(f"{v:.4g}" for v in row.get(side, ()))
    if side == "ours" or not {"ours", side} <= row.keys():
        return text
    ours, its = (statistics.median(row[s]) for s in ("ours", side))
    return f"{text} ({its / ours:.2f})" if min(ours, its) > 0 else text


def stream_lines(measured: list[dict]) -> list[str]:
    """Streams at once, with the frames of their packets."""
    if not measured:
        return []
    widths = [22, 9, 17, 17, 14, 15, 12, 10, 10]
    lines = ["", columns(["", *STREAM_COLUMNS, "packets"], widths)]
    for one in measured:
        cells = [number(one.get(key)) for key in STREAM_COLUMNS.values()]
        lines.append(columns([one["side"], *cells, one["packets"]], widths))
    return [*lines, "first byte, first audible: median and maximum of the streams"]


def latency_lines(measured: list[dict], job: dict) -> list[str]:
    """The paper's table of latencies, its own rows below ours of the same model."""
    if not measured:
        return []
    widths = [22, 9, 28, 18, 12, 14, 11, 8]
    one, paper = measured[0], PAPER.get((job["frame_rate"], job["size"]), {})
    head = f"packets of {one['packet_codes']} codes, {one['packet_seconds']:g} s; the "
    head += f"first after {one['codes_before_sound']} codes"
    lines = ["", head, columns(["", *LATENCY_COLUMNS], widths)]
    for one in measured:
        first = (one["seconds_lm_first"], one["seconds_codec_first"])
        parts = ("lm_packet", "codec_packet", "packet")
        rest = [one[f"seconds_{part}"] for part in parts]
        cells = [one["concurrency"], total(*first), one["seconds_first_packet"], *rest]
        cells = [number(value) for value in (*cells, one["rtf"])]
        lines.append(columns([one["side"], *cells], widths))
    for count in dict.fromkeys(m["concurrency"] for m in measured):
        if count in paper:
            lm, codec, *rest, rtf = paper[count]
            cells = [count, total(lm, codec), lm + codec, *rest, None, rtf]
            cells = [number(value) for value in cells]
            lines.append(columns(["the paper, its GPU", *cells], widths))
    return [*lines, "first packet, packet: of both in one program, median and maximum"]


def total(lm: float, codec: float) -> str:
    """Two times and their sum."""
    return f"{lm:.3g} + {codec:.3g} = {lm + codec:.3g}"


def packet_lines(found: list[dict]) -> list[str]:
    """First packets of many kinds."""
    if not found:
        return []
    widths = [8, 12, 12, 12, 16, 18, 12]
    names = dict(FIRST_COLUMNS)
    if "blocks" in found[0]:
        names["blocks ahead"] = "blocks"
    lines = ["", "first packet, one stream", columns([*names], widths)]
    for packet in found:
        cells = [number(packet[key]) for key in names.values()]
        lines.append(columns(cells, widths))
    return lines


def weight_lines(found: dict) -> list[str]:
    """How far cheaper weights lead from the float ones."""
    lines = []
    for side, changed in found.items():
        lines.append(f"{side}, after the same {changed['frames']} frames:")
        for name, title in (
            ("codebook_0", "codebook 0"),
            ("codebooks_1_15", "codebooks 1..15"),
        ):
            if name not in changed:  # at 25 Hz
                continue
            part = changed[name]
            lines.append(
                f"  {title}: KL {part['kl_mean']:.3g} nats (at most "
                f"{part['kl_max']:.3g}), same best code {part['same_best']:.1%}"
            )
        equal = changed["frames_equal_in_free_runs"]
        lines.append(f"  free runs: the first {equal} frames are equal")
    return ["", *lines] if lines else []


def notes(metrics: dict) -> list[str]:
    """The lines below the tables: floors, agreement, warnings, where, with what."""
    host, job = metrics["machine"], metrics["job"]
    lines = ["", *floor_lines(metrics)]
    for side, frames in metrics["agreeing_frames"].items():
        lines.append(f"{side}: same codes in the first {frames} of {job['frames']}")
    lines += [f"WARNING: {text}" for text in metrics["warnings"]]
    for side, versions in metrics["versions"].items():
        names = ", ".join(f"{name} {version}" for name, version in versions.items())
        codec = metrics["codec_dtypes"].get(side)
        codec = f"; codec {codec}" if codec else ""
        own = "".join(f"; {k} {v}" for k, v in metrics["sides"][side].items())
        lines.append(f"{side}: {names}{own}{codec}, on {metrics['devices'][side]}")
    where = f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB"
    lines.append(f"{where}; {job['threads']} threads, model {job['dtype']}")
    return [*lines, f"{metrics['date']}  {metrics['command']}"]


def floor_lines(metrics: dict) -> list[str]:
    """Each floor, and how far above it sides are; peers are compared with ours."""
    lines, frames = [], metrics["rows"]["seconds_per_frame"]
    for owner, least in metrics["floors"].items():
        peers = [s for s in frames if s not in metrics["floors"] and owner == "ours"]
        ratios = {
            side: statistics.median(frames[side]) / least["seconds_per_frame"]
            for side in [owner, *peers]
        }
        times = [f"{side} {ratio:.2f} times that" for side, ratio in ratios.items()]
        lines.append(
            f"floor of {owner}: {sum(least['bytes'].values()) / 1e9:.3g} GB per frame "
            f"at {least['bytes_per_second'] / 1e9:.3g} GB/s = "
            f"{least['seconds_per_frame']:.4g} s; {', '.join(times)}"
        )
    return lines


def plot(metrics: dict, path: pathlib.Path) -> None:
    """A frame's parts beside the floor, the codec, and the concurrency curve."""
    from matplotlib import figure  # here: it is optional

    picture = figure.Figure(figsize=(13, 4.5), layout="constrained")
    axes = picture.subplots(1, 3)
    frame = [f"seconds_per_frame_{part}" for part in ("predictor", "talker", "rest")]
    for axis, keys in zip(axes, (frame, ["seconds_decode", "seconds_encode"])):
        plot_bars(axis, metrics, keys)
    rows, parts = metrics["rows"], metrics["rows"][frame[0]]
    whole = {k: v for k, v in rows["seconds_per_frame"].items() if k not in parts}
    if whole:  # of sides that do not time the parts
        frames = dict(seconds_per_frame=whole)
        plot_bars(axes[0], metrics | dict(rows=frames), ["seconds_per_frame"])
    least = metrics["floors"]["ours"]["seconds_per_frame"]
    axes[0].axvline(least, color="k", label="floor")
    axes[0].set_xlabel(label("seconds_per_frame", metrics["job"]))
    axes[1].set_xlabel("seconds")
    plot_streams(axes[2], metrics["streams"])
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
            axis.legend(fontsize="small", **below)
    picture.savefig(path)


def plot_bars(axis, metrics: dict, keys: list[str]) -> None:
    """Medians of some rows, one after the other along a bar for each side."""
    start = {}
    for key in keys:
        row, name = metrics["rows"][key], label(key, metrics["job"]).strip()
        if not row:
            continue
        width = {s: max(0.0, statistics.median(v)) for s, v in row.items()}
        left = [start.get(side, 0.0) for side in width]
        axis.barh(list(width), list(width.values()), left=left, label=name)
        start |= {side: start.get(side, 0.0) + value for side, value in width.items()}


def plot_streams(axis, measured: list[dict]) -> None:
    """Audio seconds per second (left) and first byte (right) over the concurrency."""
    late = axis.twinx()
    for side in dict.fromkeys((s["side"], s["packets"]) for s in measured):
        mine = [s for s in measured if (s["side"], s["packets"]) == side]
        counts = [s["concurrency"] for s in mine]
        rate = [s["audio_seconds_per_second"] for s in mine]
        first = [s["seconds_first_byte"][0] for s in mine]
        name = side[0]
        [line] = axis.plot(counts, rate, "o-", label=f"{name}: audio s per s")
        axis.plot([], [], "x:", color=line.get_color(), label=f"{name}: first byte")
        late.plot(counts, first, "x:", color=line.get_color())
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("streams at once")
    axis.set_ylabel("audio seconds per second")
    late.set_ylabel("seconds to first byte")
    axis.set_ylim(bottom=0)
    late.set_ylim(bottom=0)


def write(metrics: dict, out: pathlib.Path) -> None:
    """metrics.json and, where matplotlib is installed, speed.png."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib"):
        plot(metrics, out / "speed.png")
    else:
        print("no picture: matplotlib is not installed (extra eval)", file=sys.stderr)
