"""Texts spoken by a checkpoint, and what the judges say about them."""

import concurrent.futures
import dataclasses
import time

import numpy as np

from data.preparation import sources
from eval import scoring, speaker_statistics, test_sets
from qwen3tts_jax import metrics, model
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.serving import session

SAMPLING, GREEDY = "sampling", "greedy"
MODES = {  # options of generation
    SAMPLING: {},
    GREEDY: dict(do_sample=False, subtalker_dosample=False),
}
FINISHED = "eos"  # the only good reason to stop


@dataclasses.dataclass(frozen=True)
class Job:
    """A text in a voice.  speaker: as the clips name it."""

    item: scoring.Item
    voice: model.Voice


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What came of a job.  seconds: its share of the time that its batch took."""

    job: Job
    speech: model.Speech
    seconds: float


def check(bundle: model.Qwen3TTSModel, texts: list[test_sets.Text]) -> None:
    """Refuse what the checkpoint cannot say.

    Raises: ValueError for a VoiceDesign checkpoint, which has no voice to compare with,
        and for languages that it does not know.
    """
    variant = bundle.config.variant
    if variant not in ("base", "custom_voice"):
        raise ValueError(
            f"got a {variant} checkpoint, expected base or custom_voice: what it says "
            "has no target voice; give another --model"
        )
    known = bundle.get_supported_languages()
    bad = {t.language for t in texts if _language(t.language) not in known}
    if bad:
        raise ValueError(
            f"got texts in {', '.join(sorted(bad))}, expected languages that the "
            f"checkpoint knows: {', '.join(known)}; leave these texts out"
        )


def _language(code: str) -> str:
    return sources.LANGUAGES.get(code, code)


def jobs(
    bundle, texts: list[test_sets.Text], people: speaker_statistics.Voices
) -> list[Job]:
    """Each text with a voice: its own, or those that speak its language in turn.

    Raises: ValueError for a speaker whom the checkpoint or the clips do not know.
    """
    made: list[Job] = []
    cast = _cast(bundle, people)
    known: dict[tuple, model.Voice] = {}
    for number, text in enumerate(texts):
        speaker = text.speaker
        if not speaker:
            fitting = [n for n in people.speaking(text.language) if n in cast]
            fitting = fitting or list(cast)
            speaker = fitting[number % len(fitting)]
        key = (speaker, text.reference, text.language)
        if key not in known:
            known[key] = _voice(bundle, text, speaker, people, cast)
        item = scoring.Item(text.id, text.text, text.language, "", speaker)
        made.append(Job(item, known[key]))
    return made


def _cast(bundle, people: speaker_statistics.Voices) -> dict[str, str]:
    """Names in the clips -> names in the checkpoint, of voices that both have."""
    if bundle.config.variant == "base":
        return {name: name for name in people.names}
    own = bundle.get_supported_speakers()
    cast = {
        n: e for n in people.names if (e := speaker_statistics.as_exported(n)) in own
    }
    if not cast:
        raise ValueError(
            f"got clips of {', '.join(people.names[:10])}, expected some of the "
            f"checkpoint's speakers: {', '.join(own[:10])}; give clips of these voices"
        )
    return cast


def _voice(bundle, text: test_sets.Text, speaker: str, people, cast) -> model.Voice:
    people.recording(speaker)  # the judges must know the voice, too
    language = _language(text.language)
    if bundle.config.variant == "custom_voice":
        if speaker not in cast:
            raise ValueError(
                f"got the speaker {speaker!r} of the text {text.id!r}, expected one of "
                f"{', '.join(cast)}; correct the texts"
            )
        return bundle.voice(language=language, speaker=cast[speaker])
    reference = text.reference or people.recording(speaker)
    # read here: of a path the library would take an address, too
    recording = audio_io.read(reference)
    return bundle.voice(language=language, ref_audio=recording, x_vector_only_mode=True)


def speak(
    bundle,
    work: list[Job],
    *,
    mode: str,
    seed: int,
    batch: int,
    max_frames: int | None = None,
) -> list[Spoken]:
    """Say everything, texts of like length together; results in the order given.

    max_frames: that end a clip; None: the guard against runaways.
    """
    options = MODES[mode] | limit(max_frames)
    order = sorted(range(len(work)), key=lambda i: (len(work[i].item.text), i))
    spoken: dict[int, Spoken] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        said = [bundle.utterance(work[i].item.text, work[i].voice) for i in chosen]
        began = time.perf_counter()
        speeches = bundle.speak(said, seed=seed, **options)
        seconds = (time.perf_counter() - began) / len(chosen)
        for i, speech in zip(chosen, speeches):
            spoken[i] = Spoken(work[i], speech, seconds)
    return [spoken[i] for i in range(len(work))]


def judge(
    panel,
    spoken: list[Spoken],
    people: speaker_statistics.Voices,
    system: str,
    *,
    workers: int = 1,
) -> list[scoring.Score]:
    """Scores of all that was said."""

    def one(said: Spoken) -> scoring.Score:
        item, wave = said.job.item, said.speech.wave
        low = audio_io.resample(wave, audio_io.SAMPLE_RATE, scoring.JUDGE_RATE)
        values = dict(
            cosine=people.likeness(panel.speaker(low), item.speaker),
            failed=float(said.speech.stop_reason != FINISHED),
        )
        usual = people.rate(item.speaker, item.language)
        seconds = metrics.speech_seconds(wave)
        if usual and seconds > 0:
            values["rate_ratio"] = metrics.speaking_rate([item.text], [seconds]) / usual
        return scoring.judge(panel, item, system, wave, **values)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, spoken))


def recordings(panel, clips: list[test_sets.Clip], *, workers: int = 1):
    """Scores of the clips themselves: the ceiling."""

    def one(clip: test_sets.Clip) -> scoring.Score:
        item = scoring.Item(
            clip.id, clip.text, clip.language, clip.source, clip.speaker
        )
        return scoring.judge(panel, item, scoring.RECORDINGS, audio_io.load(clip.audio))

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, clips))


def real_time_factor(spoken: list[Spoken]) -> float:
    """Of all batches, with the compiling that their sizes needed."""
    seconds = sum(one.seconds for one in spoken)
    samples = sum(len(one.speech.wave) for one in spoken)
    return metrics.real_time_factor(seconds, samples, audio_io.SAMPLE_RATE)


def stop_reasons(spoken: list[Spoken]) -> dict[str, int]:
    """How often each reason occurs."""
    reasons = [one.speech.stop_reason for one in spoken]
    return {reason: reasons.count(reason) for reason in sorted(set(reasons))}


def limit(max_frames: int | None) -> dict:
    """Options of generation that end after so many frames."""
    return {} if max_frames is None else dict(max_new_tokens=max_frames + 1)


def streaming(
    bundle, work: list[Job], *, seed: int, max_frames: int | None = None
) -> list[dict]:
    """Whether streams give what `speak` gives, with sampling.

    Returns: for each job: id, frames, codes_equal, max_difference of the waves, scale
        (the wave's largest sample).
    """
    found, options = [], dict(seed=seed) | limit(max_frames)
    for job in work:
        said = bundle.utterance(job.item.text, job.voice)
        [whole] = bundle.speak([said], **options)
        stream = session.StreamingSession(bundle, job.voice, **options)
        wave = np.concatenate(list(stream.speak(job.item.text)))
        same = len(wave) == len(whole.wave)
        gap = float(np.abs(wave - whole.wave).max()) if same else float("inf")
        found.append(
            dict(
                id=job.item.id,
                frames=len(whole.codes),
                codes_equal=bool(np.array_equal(stream.codes, whole.codes)),
                max_difference=gap,
                scale=float(np.abs(whole.wave).max()),
            )
        )
    return found
