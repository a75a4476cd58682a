"""eval.run voice with judges whose answers are known, and what it refuses."""

import inspect
import pathlib
import types

import judging
import numpy as np
import pytest

from eval import run, speaker_statistics, test_sets
from eval import speech as voice_quality
from qwen3tts_jax import model
from qwen3tts_jax.audio import io as audio_io
from qwen3tts_jax.generation import sampling
from qwen3tts_jax.serving import session

REAL, REAL_STREAM = model.Qwen3TTSModel, session.StreamingSession


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> pathlib.Path:
    return judging.write_clips(tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def panel(clips):
    return judging.Panel(test_sets.read_clips(str(clips)))


def fits(function, *args, **given) -> None:
    """Raises: TypeError unless the real thing takes these arguments."""
    inspect.signature(function).bind(*args, **given)


class Bundle:
    """Stands for a Base checkpoint that says recordings where it is given their text.

    It never finds the end of another text.  Arguments are checked against the real one.
    """

    config = types.SimpleNamespace(variant="base")

    def __init__(self, clips: list[test_sets.Clip]):
        self.waves = {clip.text: audio_io.load(clip.audio) for clip in clips}
        self.options, self.references = [], []

    def get_supported_languages(self):
        return ["english", "italian"]

    def voice(self, *, language, ref_audio, x_vector_only_mode):
        given = dict(ref_audio=ref_audio, x_vector_only_mode=x_vector_only_mode)
        fits(REAL.voice, self, language=language, **given)
        assert x_vector_only_mode and len(ref_audio[0])
        self.references.append((language, len(ref_audio[0])))
        return language

    def utterance(self, text, voice):
        return text

    def speak(self, said, **options):
        fits(REAL.speak, self, said, **options)
        drawing = {k: v for k, v in options.items() if k != "seed"}
        sampling.Options.merge(drawing, {})
        self.options.append((len(said), options))
        return [self.speech(text) for text in said]

    def speech(self, text):
        known = text in self.waves
        wave = self.waves[text] if known else np.full(7200, 0.1, np.float32)
        codes = np.zeros((-(-len(wave) // 1920), 16), np.int32)
        return model.Speech(wave, codes, "eos" if known else "guard")


class Stream:
    """Stands for a StreamingSession of a Bundle, and is wrong in one sample."""

    def __init__(self, bundle, voice, **options):
        fits(REAL_STREAM, bundle, voice, **options)
        self.bundle = bundle

    def speak(self, text):
        speech = self.bundle.speech(text)
        self.codes = speech.codes
        wave = speech.wave.copy()
        wave[5] += 0.25
        yield from np.array_split(wave, 3)


@pytest.fixture(scope="module")
def voice_run(panel, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("voice")
    listed = test_sets.read_clips(str(clips))
    bundle = Bundle(listed)
    lines = [
        dict(text=clip.text, language=clip.language, id=clip.id) for clip in listed
    ]
    lines += [dict(text="Nobody knows this.", language="en", speaker="Carlo", id="x")]
    (out / "long.txt").write_text(listed[0].text + "\n")
    arguments = ["--clips", clips, "--texts", judging.write(out / "texts.jsonl", lines)]
    arguments += ["--long", f"en={out / 'long.txt'}", "--seeds", "3,4", "--streams", 1]
    with pytest.MonkeyPatch.context() as patch:
        use(bundle, patch)
        patch.setattr(voice_quality.session, "StreamingSession", Stream)
        found = judging.evaluate(
            panel, out, "voice", "--model", "x", "--batch", 3, *arguments
        )
    return out, found, bundle


def test_voice_counts_words_stops_and_likeness(voice_run):
    out, found, bundle = voice_run
    rows = {row["system"]: row for row in found["all"]}
    assert list(rows) == ["recordings", "sampling", "greedy"]
    total = judging.words([name for _, name, _ in judging.PICKED])
    for mode, seeds in (("sampling", 2), ("greedy", 1)):
        row = rows[mode]
        assert (row["n"], row["failures"]) == (5 * seeds, f"{seeds}/{5 * seeds}")
        wer = row["wer"]
        assert (wer["deletions"], wer["substitutions"]) == (3 * seeds, 0)
        assert wer["length"] == (total + 3) * seeds
    reasons = {"eos": 4, "guard": 1}
    assert found["stop_reasons"] == {
        "sampling, seed 3": reasons,
        "sampling, seed 4": reasons,
        "greedy": reasons,
    }
    by_voice = {(r["group"], r["system"]): r for r in found["by_speaker"]}
    assert by_voice["Allison", "greedy"]["n"] == 2  # who speaks English
    assert by_voice["Carlo", "greedy"]["n"] == 3  # Italian, and x asked for him
    # what Allison says are her recordings, at her rate
    assert by_voice["Allison", "greedy"]["rate_ratio"]["value"] == pytest.approx(
        1, abs=0.2
    )
    assert found["long"]["insertions_deletions"] == 0
    assert found["long"]["failures"] == "0/1"
    text = (out / "voice.md").read_text()
    assert "| 2/10 |" in text and "greedy: mean WER of it: 0.0 %." in text


def test_voice_asks_the_checkpoint_as_told(voice_run):
    _, _, bundle = voice_run
    greedy = dict(do_sample=False, subtalker_dosample=False)
    batches = [(3, {}), (2, {})] * 2 + [(3, greedy), (2, greedy)]
    asked = [
        (n, {k: v for k, v in o.items() if k != "seed"}) for n, o in bundle.options
    ]
    assert asked == [*batches, (1, {}), (1, {})]  # then the long text and a stream
    assert [o["seed"] for _, o in bundle.options] == [3, 3, 4, 4, 3, 3, 3, 3]
    languages = [language for language, _ in bundle.references]
    assert sorted(languages) == ["english"] * 3 + ["italian"]


def test_a_stream_that_differs_is_reported(voice_run):
    out, found, _ = voice_run
    [one] = found["streaming"]
    assert one["codes_equal"] and one["max_difference"] == pytest.approx(0.25)
    assert (
        "as a stream: codes equal, largest difference of the wave 2.5e-01"
        in (out / "voice.md").read_text()
    )


def test_voices_by_hand(clips):
    """Vectors in the plane: likeness, its quartile, names, rates."""
    angles = iter(np.radians([0, 60, 90, 90]))

    class Compass(judging.Panel):
        def speaker(self, wave):
            angle = next(angles)
            return np.float32([np.cos(angle), np.sin(angle)])

    listed = test_sets.read_clips(str(clips))
    people = speaker_statistics.Voices(listed, Compass(listed))
    assert people.names == ["Allison", "Carlo"]
    assert people.speaking("it") == ["Carlo"] and people.speaking("zh") == people.names
    np.testing.assert_allclose(people.same_voice(), [0.5, 0.5, 1, 1], atol=1e-6)
    assert people.lower_quartile() == pytest.approx(0.5)
    assert people.likeness(np.float32([0, 2]), "Carlo") == pytest.approx(1)
    assert people.rate("Carlo", "it") == people.rate("Allison", "it")
    assert 5 < people.rate("Allison", "en") < 30
    assert people.rate("Carlo", "zh") is None
    long = max(listed[:2], key=lambda clip: len(audio_io.load(clip.audio)))
    assert people.recording("Allison") == long.audio
    assert speaker_statistics.as_exported("asterisk/it_IT m") == "asterisk_it_it_m"


BAD_TEXTS = [
    ("not json", "line 1: no JSON object"),
    ('{"text": " ", "language": "en"}', "line 1: text is ' ', expected text"),
    (
        '{"text": "a", "language": "en", "voice": "x"}',
        "unknown keys voice, expected id",
    ),
    ('{"text": "a", "language": "en", "reference": "no.wav"}', "no.wav"),
    ("\n", "no line"),
    ('{"text": "a", "language": "hu"}', "texts in hu, expected languages"),
    (
        '{"text": "a", "language": "en", "speaker": "Bob"}',
        "speaker 'Bob', expected one",
    ),
]


def use(bundle, monkeypatch) -> None:
    load = types.SimpleNamespace(from_pretrained=lambda path: bundle)
    monkeypatch.setattr(run.model, "Qwen3TTSModel", load)


@pytest.mark.parametrize("line, says", BAD_TEXTS)
def test_bad_texts_are_refused(panel, capsys, tmp_path, clips, monkeypatch, line, says):
    use(Bundle([]), monkeypatch)
    (tmp_path / "bad.jsonl").write_text(line)
    arguments = ("--texts", tmp_path / "bad.jsonl", "--clips", clips, "--model", "x")
    said = judging.refusal(panel, capsys, "voice", "--out", tmp_path, *arguments)
    assert says in said


def test_other_checkpoints_are_refused(panel, capsys, tmp_path, clips, monkeypatch):
    texts = judging.write(
        tmp_path / "texts.jsonl", [dict(text="Hello.", language="en")]
    )
    arguments = ("--texts", texts, "--clips", clips, "--model", "x", "--out", tmp_path)
    bundle = Bundle([])
    use(bundle, monkeypatch)
    bundle.config = types.SimpleNamespace(variant="voice_design")
    said = judging.refusal(panel, capsys, "voice", *arguments)
    assert "got a voice_design checkpoint, expected base or custom_voice" in said
    bundle.config = types.SimpleNamespace(variant="custom_voice")
    bundle.get_supported_speakers = lambda: ["vivian"]
    said = judging.refusal(panel, capsys, "voice", *arguments)
    assert "got clips of Allison, Carlo, expected some of" in said and "vivian" in said


def test_own_voices_are_found_by_their_exported_names(panel, clips):
    bundle = Bundle([])
    bundle.config = types.SimpleNamespace(variant="custom_voice")
    bundle.get_supported_speakers = lambda: ["carlo"]
    bundle.voice = lambda **given: given
    people = speaker_statistics.Voices(test_sets.read_clips(str(clips)), panel)
    texts = [test_sets.Text("a", "Ciao.", "it"), test_sets.Text("b", "Hello.", "en")]
    work = voice_quality.jobs(bundle, texts, people)
    # Allison speaks English, but the checkpoint does not have her
    assert [job.item.speaker for job in work] == ["Carlo", "Carlo"]
    assert work[0].voice == dict(language="italian", speaker="carlo")
    with pytest.raises(ValueError, match="speaker 'Allison' of the text 'c'.*Carlo"):
        voice_quality.jobs(bundle, [test_sets.Text("c", "x", "en", "Allison")], people)
