"""How good a codec or a voice is: words understood, voice kept, quality, in one table.

    python -m eval.run recordings --clips held_out.jsonl --out DIR
    python -m eval.run codec --model CODEC --clips held_out.jsonl --out DIR
    python -m eval.run voice --model CHECKPOINT --texts en=held_out.txt texts.jsonl \\
        --clips held_out.jsonl --out DIR

Needs `pip install '.[eval]'`.  --clips: JSON lines {"audio", "text", "language"} and
any of id, speaker, source; every clip is scored, one that is missing is an error.

recordings: the judges on the clips themselves, which is the ceiling, and the baselines:
    Opus at its lowest bit rate, and an 80-bin mel spectrogram turned back into sound.
codec: the same and what the codec leaves of the clips with 16, 8, 4, 2 and 1 codebooks;
    the use of the codebooks; a picture; some clips to listen to.
voice: --texts in the voices of --clips, which a Base checkpoint clones by x-vector and
    of which a CustomVoice checkpoint has some.  Sampling and greedy; clips that do not
    stop by themselves; --long texts by words left out or put in; streams against
    whole utterances.

Words: WER and CER pooled over all clips, with a 95 % bootstrap interval; in Chinese and
Japanese WER counts characters.  Other figures: mean and standard error.  The judges:
Whisper base, DNSMOS, PESQ (wide band), STOI at 16 kHz, and a speaker model whose
cosines compare with each other only.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import os
import pathlib
import sys

from eval import codec, report, scoring, speaker_statistics, speech, test_sets
from qwen3tts_jax import model

EXTRA = "pip install '.[eval]'"
DIFFERENT = ("stoi", "pesq")  # figures that some clips may lack
COUNTS = (16, 4, 1)  # codebooks in the picture
SHOWN = 12  # ids in a note


def extra(name: str):
    """A module that needs optional packages.

    Raises: ModuleNotFoundError that says how to get them.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{name} needs a package that cannot be imported ({error}); do: {EXTRA}"
        ) from error


# ------------------------------------------------------------------ codec, recordings


def run_codec(args, panel) -> None:
    """The commands codec and recordings; the second has no --model."""
    name = "codec" if args.model else "recordings"
    clips = test_sets.read_clips(args.clips, limit=args.limit, seed=args.seed)
    opus = extra("eval.baselines.opus") if "opus" in args.baselines else None
    tokenizer = codec.load(args.model) if args.model else None
    ways = codec.systems(
        tokenizer, opus=opus, mels="griffin_lim" in args.baselines, seed=args.seed
    )
    found = codec.run(
        clips,
        ways,
        panel,
        tokenizer=tokenizer,
        keep=args.samples,
        workers=args.workers,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    figures = record(args, panel, clips)
    parts = [f"# {name}: {len(clips)} clips", tables(figures, found.scores, args)]
    if tokenizer is not None:
        size = tokenizer.config.decoder.codebook_size
        figures["codebooks"] = codec.codebooks(found.codes, size)
        figures["fingerprint"] = tokenizer.fingerprint
        parts += ["## Codebooks", report.codebook_table(figures["codebooks"])]
    report.write_samples(args.out, found.samples)
    draw(args.out / "spectrograms.png", found.samples)
    report.write(args.out, name, "\n\n".join([*parts, judged_by(figures)]), figures)


def tables(figures: dict, judged: list[scoring.Score], args) -> str:
    """All clips, each language, each source; also put into figures."""
    parts = []
    for group in (None, "language", "source"):
        rows = scoring.table(judged, group, seed=args.seed)
        first = {group.title(): "group"} if group else {}
        first["System"] = "system"
        figures[f"by_{group}" if group else "all"] = rows
        table = report.markdown(rows, report.QUALITY, first=first)
        parts += [f"## By {group}"] * bool(group) + [table]
    figures["not_measured"] = lacking = scoring.missing_values(
        [score for score in judged if score.system != scoring.RECORDINGS], DIFFERENT
    )
    parts += [
        f"{name} cannot be measured on {len(ids)} clips (too little speech): "
        f"{', '.join(ids[:SHOWN])}."
        for name, ids in lacking.items()
    ]
    figures["scores"] = [score.as_json() for score in judged]
    return "\n\n".join(parts)


def draw(path: pathlib.Path, samples: dict) -> None:
    """The first kept clip: as recorded, and with 16, 4 and 1 codebooks."""
    if not samples:
        return
    clip = next(iter(samples))[0]
    names = [scoring.RECORDINGS, *map(codec.codec_name, COUNTS)]
    waves = {n: samples[clip, n] for n in names if (clip, n) in samples}
    picture(path, waves, clip)


def picture(path: pathlib.Path, waves: dict, title: str) -> None:
    """Where matplotlib is installed."""
    if importlib.util.find_spec("matplotlib"):
        extra("eval.spectrograms").spectrograms(path, waves, title=title)
    else:
        print(f"no picture: matplotlib is not installed; do: {EXTRA}", file=sys.stderr)


# ----------------------------------------------------------------------------- voice


def run_voice(args, panel) -> None:
    """The command voice."""
    texts, long = (read_texts(paths) for paths in (args.texts, args.long))
    texts = test_sets.spread(texts, args.limit, args.seed) if args.limit else texts
    clips = test_sets.read_clips(args.clips)
    check_ids([*texts, *long])
    bundle = model.Qwen3TTSModel.from_pretrained(args.model)
    speech.check(bundle, [*texts, *long])
    people = speaker_statistics.Voices(clips, panel)
    work = speech.jobs(bundle, texts, people)
    figures = record(args, panel, clips) | dict(stop_reasons={}, rtf={})
    some = test_sets.spread(clips, args.ceiling, args.seed)
    judged = speech.recordings(panel, some, workers=args.workers)
    made, samples = speak_all(args, panel, bundle, people, work, figures)
    figures["corpus_lower_quartile"] = people.lower_quartile()
    tables = spoken_tables(figures, [*judged, *made], args)
    parts = [f"# voice: {len(texts)} texts", tables]
    if long:
        parts += ["## Long texts", run_long(args, panel, bundle, people, long, figures)]
    first = work[: args.streams]
    figures["streaming"] = speech.streaming(
        bundle, first, seed=args.seeds[0], max_frames=args.max_frames
    )
    parts += ["\n".join(f"- {line}" for line in notes(figures)), judged_by(figures)]
    report.write_samples(args.out, samples)
    report.write(args.out, "voice", "\n\n".join(parts), figures)


def read_texts(paths: list[str]) -> list[test_sets.Text]:
    return [text for path in paths for text in test_sets.read_texts(path)]


def speak_all(args, panel, bundle, people, work, figures) -> tuple[list, dict]:
    """Every mode and seed: (scores, (id, mode) -> wave of the first texts)."""
    judged, samples = [], {}
    for mode in args.modes:
        greedy = mode == speech.GREEDY
        for seed in args.seeds[:1] if greedy else args.seeds:
            options = dict(mode=mode, seed=seed, max_frames=args.max_frames)
            spoken = speech.speak(bundle, work, batch=args.batch, **options)
            judged += speech.judge(panel, spoken, people, mode, workers=args.workers)
            name = mode if greedy else f"{mode}, seed {seed}"
            figures["stop_reasons"][name] = speech.stop_reasons(spoken)
            figures["rtf"][name] = speech.real_time_factor(spoken)
            if seed == args.seeds[0]:
                for one in spoken[: args.samples]:
                    samples[one.job.item.id, mode] = one.speech.wave
            print(f"{name}: {len(spoken)} texts", file=sys.stderr, flush=True)
    return judged, samples


def check_ids(texts: list[test_sets.Text]) -> None:
    ids = [text.id for text in texts]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"got ids twice: {', '.join(twice[:SHOWN])}; rename the texts")


def spoken_tables(figures: dict, judged: list[scoring.Score], args) -> str:
    """All texts, each language, each voice; also put into figures."""
    parts = []
    for group in (None, "language", "speaker"):
        rows = scoring.table(judged, group, seed=args.seed, paired=False)
        count_failures(rows)
        first = {group.title(): "group"} if group else {}
        first["System"] = "system"
        figures[f"by_{group}" if group else "all"] = rows
        table = report.markdown(rows, report.SPEECH, first=first)
        parts += [f"## By {group}"] * bool(group) + [table]
    figures["scores"] = [score.as_json() for score in judged]
    return "\n\n".join(parts)


def count_failures(rows: list[dict]) -> None:
    """Adds "failures", "2/100", to rows of what was generated."""
    for row in rows:
        if failed := row.get("failed"):
            count = round(failed["value"] * failed["n"])
            row["failures"] = f"{count}/{failed['n']}"


def run_long(
    args, panel, bundle, people, long: list[test_sets.Text], figures: dict
) -> str:
    """Words left out and put in, over long texts."""
    work = speech.jobs(bundle, long, people)
    options = dict(mode=speech.SAMPLING, seed=args.seeds[0], batch=args.batch)
    spoken = speech.speak(bundle, work, max_frames=args.max_frames, **options)
    judged = speech.judge(panel, spoken, people, "long", workers=args.workers)
    [row] = rows = scoring.table(judged, None, seed=args.seed, paired=False)
    count_failures(rows)
    words = row["wer"]
    lost = (words["insertions"] + words["deletions"]) / max(1, words["length"])
    reasons = speech.stop_reasons(spoken)
    kept = [score.as_json() for score in judged]
    figures["long"] = row | dict(
        insertions_deletions=lost, stop_reasons=reasons, scores=kept
    )
    table = report.markdown([row], report.SPEECH, first={"System": "system"})
    return f"{table}\n\nInsertions and deletions: {100 * lost:.1f} %.  Ends: {reasons}."


def notes(figures: dict) -> list[str]:
    """What stands in no table."""
    quartile = figures["corpus_lower_quartile"]
    found = [
        f"Lower quartile of the corpus' clips against others of their voice: "
        f"{quartile:.3f} (compare: speaker cosine)."
    ]
    found += other_languages(figures["by_language"])
    for name, reasons in figures["stop_reasons"].items():
        rtf = figures["rtf"][name]
        found.append(f"{name}: ends {reasons}; RTF {rtf:.2f}, compiling included.")
    for one in figures["streaming"]:
        equal = "equal" if one["codes_equal"] else "DIFFERENT"
        found.append(
            f"{one['id']} as a stream: codes {equal}, largest difference of the wave "
            f"{one['max_difference']:.1e} of {one['scale']:.2f}."
        )
    return found


def other_languages(rows: list[dict]) -> list[str]:
    """The mean WER of all languages but English, for each mode."""
    found = []
    for mode in speech.MODES:
        mine = [r for r in rows if r["system"] == mode and r["group"] != "en"]
        if mine:
            mean = sum(row["wer"]["pooled"] for row in mine) / len(mine)
            names = ", ".join(row["group"] for row in mine)
            found.append(f"{mode}: mean WER of {names}: {100 * mean:.1f} %.")
    return found


# ---------------------------------------------------------------------------- common


def record(args, panel, clips: list[test_sets.Clip]) -> dict:
    """What was asked, with what."""
    given = {name: value for name, value in vars(args).items() if name != "run"}
    asked = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in given.items()}
    return dict(
        asked=asked,
        environment=report.environment(sys.argv),
        judges=panel.facts,
        clips=[dataclasses.asdict(clip) for clip in clips],
    )


def judged_by(figures: dict) -> str:
    facts = {k: v for k, v in figures["judges"].items() if k != "packages"}
    return "Judged by " + "; ".join(f"{k}: {v}" for k, v in facts.items()) + "."


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def choice(*known: str):
    """A list of some of these, with commas between; "none" for none."""

    def parse(text: str) -> list[str]:
        found = [] if text == "none" else text.split(",")
        if bad := set(found) - set(known):
            raise argparse.ArgumentTypeError(
                f"got {', '.join(sorted(bad))}, expected some of {', '.join(known)}"
            )
        return found

    return parse


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "eval.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True)
    both = argparse.ArgumentParser(add_help=False)
    add, path = both.add_argument, pathlib.Path
    add("--clips", required=True, help="JSON lines: recordings with text")
    add("--out", type=path, required=True, help="folder for table, JSON, sounds")
    add("--limit", type=int, help="clips or texts, even over sources and languages")
    add("--seed", type=int, default=0, help="of all draws of the evaluation itself")
    add("--samples", type=int, default=3, help="clips to keep the sound of")
    add("--asr", type=path, help="a Whisper model of CTranslate2; default: packaged")
    add("--workers", type=int, default=os.cpu_count(), help="clips side by side")
    for name in ("recordings", "codec"):
        one = commands.add_parser(name, parents=[both])
        one.set_defaults(run=run_codec, model=None)
        kinds = ("opus", "griffin_lim")
        one.add_argument("--baselines", type=choice(*kinds), default=list(kinds))
        if name == "codec":
            one.add_argument("--model", required=True, help="codec, or TTS checkpoint")
    add_voice_flags(commands.add_parser("voice", parents=[both]))
    return made


def add_voice_flags(voice: argparse.ArgumentParser) -> None:
    voice.set_defaults(run=run_voice)
    add = voice.add_argument
    add("--model", required=True, help="TTS checkpoint: Base or CustomVoice")
    add("--texts", nargs="+", required=True, help="JSON lines, or en=FILE.txt")
    add("--long", nargs="*", default=[], help="long texts, likewise")
    modes = list(speech.MODES)
    add("--modes", type=choice(*modes), default=modes)
    add("--seeds", type=numbers, default=[0], help="of sampling: 0,1,2")
    add("--max_frames", type=int, help="of a clip; one that reaches it has failed")
    add("--batch", type=int, default=8, help="texts spoken side by side")
    add("--streams", type=int, default=2, help="texts streamed, to compare")
    add("--ceiling", type=int, default=40, help="clips judged as they are")


def main(argv: list[str] | None = None, panel=None) -> None:
    """panel: judges in place of `eval.scorers.Panel`, for tests."""
    made = parser()
    args = made.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if panel is None:
            panel = extra("eval.scorers").Panel(args.asr, workers=args.workers)
        args.run(args, panel)
    except (OSError, ModuleNotFoundError, ValueError) as error:
        made.error(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
