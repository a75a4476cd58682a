"""Where clips come from: manifests, folders, TFDS builders, unpacked packages."""

import gzip
import importlib.util
import json

import numpy as np
import pytest
import soundfile

from data import optional
from data.preparation import debian_recordings, sources

NO_TFDS = importlib.util.find_spec("tensorflow_datasets") is None
TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def listed(kind: str, where, **facts) -> list:
    found = sources.open_source(sources.Spec(kind, str(where), **facts))
    return found.clips(0, len(found))


def manifest(folder, *lines) -> str:
    path = folder / "clips.jsonl"
    texts = [x if isinstance(x, str) else json.dumps(x) for x in lines]
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return str(path)


# --------------------------------------------------------------------- manifest


def test_a_manifest_names_clips_relative_to_itself(tmp_path):
    full = dict(audio="b.ogg", text=" To\u0301  b ", id="B", language="IT", speaker="s")
    path = manifest(tmp_path, dict(audio="x/a.wav", text="A."), "", full)
    plain, other = listed("manifest", path, language="english", speaker="v")
    assert (plain.id, plain.audio) == ("x/a.wav", str(tmp_path / "x/a.wav"))
    assert (plain.language, plain.speaker, plain.source) == ("english", "v", "clips")
    assert (other.id, other.text) == ("B", "Tó b")  # composed, one space
    assert (other.language, other.speaker) == ("italian", "s")


def test_a_manifest_is_read_in_slices_and_cut_to_its_limit(tmp_path):
    lines = [dict(audio=f"{n}.wav", text=str(n)) for n in range(10)]
    path = manifest(tmp_path, *lines)
    source = sources.open_source(sources.Spec("manifest", path, limit=7))
    assert len(source) == 7
    assert [clip.text for clip in source.clips(5, 99)] == ["5", "6"]


def test_bad_lines_of_a_manifest_are_refused_together(tmp_path):
    good = dict(audio="a.wav", text="A.")
    path = manifest(tmp_path, good, "{oops", dict(text="b"), good | dict(text=3), good)
    with pytest.raises(ValueError) as caught:
        sources.open_source(sources.Spec("manifest", path)).check()
    message = str(caught.value)
    for part in ("entry 2: not a JSON", "entry 3: audio is None", "entry 4: text is 3"):
        assert part in message
    assert "entry 5: the id 'a.wav' occurs twice" in message


def test_keys_that_nobody_reads_are_told(tmp_path):
    path = manifest(tmp_path, dict(audio="a.wav", text="A.", ref_audio="r.wav"))
    assert sources.open_source(sources.Spec("manifest", path)).check() == {"ref_audio"}


def test_a_fingerprint_changes_with_the_source(tmp_path):
    def fingerprint(text):
        path = manifest(tmp_path, dict(audio="a.wav", text=text))
        return sources.open_source(sources.Spec("manifest", path)).fingerprint()

    assert fingerprint("A.") == fingerprint("A.") != fingerprint("B.")


def test_an_empty_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no clip"):
        listed("manifest", manifest(tmp_path, ""))
    with pytest.raises(ValueError, match="no clip"):
        listed("folder", tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        listed("manifest", tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="of kind 'tape'"):
        listed("tape", tmp_path)


# ----------------------------------------------------------------------- folder


def tree(root, **files) -> None:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_folder_pairs_sound_and_text(tmp_path):
    tree(
        tmp_path,
        b__2_DOT_flac=b"",
        b__2_DOT_txt="Two\nlines.",
        a__1_DOT_WAV=b"",
        a__notes_DOT_md="no clip",
    )
    one, two = listed("folder", tmp_path, language="english")
    assert (one.id, one.text) == ("a/1.WAV", "")  # no text: dropped later, and counted
    assert (two.id, two.text, two.language) == ("b/2.flac", "Two lines.", "english")


def test_the_nearest_facts_of_a_folder_count(tmp_path):
    tree(
        tmp_path,
        facts_DOT_json='{"language": "it", "speaker": "anna"}',
        x__facts_DOT_json='{"speaker": "bob", "instruct": "loudly"}',
        x__y__1_DOT_wav=b"",
        z__2_DOT_wav=b"",
    )
    deep, shallow = listed("folder", tmp_path)
    assert (deep.language, deep.speaker, deep.instruct) == ("italian", "bob", "loudly")
    assert (shallow.speaker, shallow.instruct) == ("anna", "")
    tree(tmp_path, x__facts_DOT_json='{"voice": "bob"}')
    with pytest.raises(ValueError, match="language, speaker, instruct"):
        listed("folder", tmp_path)


def test_a_folder_notices_another_file(tmp_path):
    tree(tmp_path, a_DOT_wav=b"1")
    spec = sources.Spec("folder", str(tmp_path))
    before = sources.open_source(spec).fingerprint()
    assert sources.open_source(spec).fingerprint() == before
    tree(tmp_path, a_DOT_wav=b"12")
    assert sources.open_source(spec).fingerprint() != before


# ------------------------------------------------------------- real recordings


@pytest.mark.parametrize(
    "text, spoken, problem",
    [
        ("Agent logged in.", "Agent logged in.", ""),
        ("at [@]", "at", ""),
        ("space [ ]", "space", ""),
        ("[this is a simple beep tone]", None, "remark"),
        ("IAX (note: does not say)", None, "remark"),
        ("<beep ascending>", None, "remark"),
        ("il tempo sar? esattamente.", None, "lost_letter"),
        ("Cambia verso quale cartella?", "Cambia verso quale cartella?", ""),
        (
            "Login non corretta. Casella? Prego",
            "Login non corretta. Casella? Prego",
            "",
        ),
    ],
)
def test_remarks_of_a_transcript_are_not_spoken(text, spoken, problem):
    found, why = debian_recordings.spoken_text(text, code="it", key="x")
    assert why == problem
    assert spoken is None or found == spoken


def test_brackets_that_are_known_to_be_spoken_lose_their_signs():
    text = "убрать пометку (статус) «важно»"
    found = debian_recordings.spoken_text(text, code="ru", key="vm-review-nonurgent")
    assert found == ("убрать пометку статус «важно»", "")
    assert debian_recordings.spoken_text(text, code="ru", key="other")[1] == "remark"


def test_asterisk_prompts_get_their_lines(tmp_path):
    base = "asterisk__sounds__it_IT_m_Carlo__"
    lines = (
        "\ufeff; comment: no\nagent-loginok: Ciao: tu.\ndigits/1: uno\nbeep: [tono]\n"
    )
    listing = "doc__asterisk-core-sounds-it__core-sounds-it_DOT_txt_DOT_gz"
    tree(
        tmp_path,
        **{
            f"{base}agent-loginok_DOT_g722": b"12345678",
            f"{base}digits__1_DOT_g722": b"",
            f"{base}beep_DOT_g722": b"",
            f"{base}no-text_DOT_g722": b"",
            listing: gzip.compress(lines.encode()),
        },
    )
    found = {clip.id: clip for clip in listed("asterisk", tmp_path, languages=("it",))}
    assert list(found) == [
        f"asterisk/it/{key}" for key in ("agent-loginok", "beep", "digits/1", "no-text")
    ]
    first = found["asterisk/it/agent-loginok"]
    assert (first.text, first.language) == ("Ciao: tu.", "italian")
    assert first.speaker == "asterisk/it_IT_m_Carlo"
    assert found["asterisk/it/beep"].problem == "remark"
    assert found["asterisk/it/no-text"].text == ""


def test_tuxpaint_reads_each_language_of_a_text(tmp_path):
    base = "usr__share__tuxpaint__stamps__animals__"
    tree(
        tmp_path,
        **{
            f"{base}cat_desc_DOT_ogg": b"",
            f"{base}cat_desc_fr_DOT_ogg": b"",
            f"{base}cat_DOT_txt": "A cat.\nfr.utf8=Un chat.\n",
        },
    )
    found = [(c.language, c.text, c.speaker) for c in listed("tuxpaint", tmp_path)]
    assert found == [("english", "A cat.", ""), ("french", "Un chat.", "")]


def test_fillets_takes_the_speaker_from_the_font(tmp_path):
    base = "share__games__fillets-ng__"
    script = (
        'dialogId("a", "font_big", "He said \\"no\\".")\ndialogStr("Řekl \\"ne\\".")\n'
        'dialogId("b", "font_small", "Untranslated.")\n'
    )
    tree(
        tmp_path,
        **{
            f"{base}script__cave__dialogs_cs_DOT_lua": script,
            f"{base}sound__cave__cs__a_DOT_ogg": b"",
            f"{base}sound__cave__cs__b_DOT_ogg": b"",
        },
    )
    a, b = listed("fillets", tmp_path, languages=("cs",))
    assert (a.text, a.language, a.speaker) == (
        'Řekl "ne".',
        "czech",
        "fillets/cs/font_big",
    )
    assert b.text == ""


def test_missing_packages_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        listed("asterisk", "", languages=("en", "it"))
    command = "apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-g722 "
    assert command in str(caught.value) and "dpkg -x" in str(caught.value)
    assert "-fr" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="fillets-ng-data-nl"):
        listed("fillets", tmp_path, languages=("nl",))
    with pytest.raises(ValueError, match="languages ja, expected some of en, es"):
        listed("asterisk", tmp_path, languages=("ja",))


# ------------------------------------------------------------------------- TFDS


@pytest.mark.skipif(NO_TFDS, reason="tensorflow-datasets is optional (extra tfds)")
def test_a_tfds_builder_of_tensors_is_read_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    sound = [np.arange(n, dtype=np.int16) for n in (100, 200, 300)]

    class TinySpeech(tfds.core.GeneratorBasedBuilder):
        """Three rows."""

        __module__ = "tiny_speech"  # in a folder of tests, TFDS would look beside it
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = dict(
                speech=tfds.features.Tensor(shape=(None,), dtype=np.int16),
                text=tfds.features.Text(),
                speaker=tfds.features.Text(),
            )
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for n, wave in enumerate(sound):
                yield n, dict(speech=wave, text=f"Nummer {n}.", speaker="x")

    TinySpeech(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    spec = sources.Spec("tfds", "tiny_speech", data_dir=str(tmp_path), language="de")
    with pytest.raises(ValueError, match="no sample rate; give --rate"):
        sources.open_source(spec)
    clips = listed("tfds", "tiny_speech", data_dir=str(tmp_path), rate=16_000)
    assert sorted(clip.text for clip in clips) == [
        "Nummer 0.",
        "Nummer 1.",
        "Nummer 2.",
    ]
    for row, clip in enumerate(clips):
        n = int(clip.text[7])
        assert np.array_equal(clip.audio[0], sound[n]) and clip.audio[1] == 16_000
        assert clip.id == f"tiny_speech/1.0.0/train/{row}"
        assert clip.speaker == "tiny_speech/1.0.0/x"


@pytest.mark.skipif(NO_TFDS or TENSORFLOW, reason="TFDS without TensorFlow")
def test_a_tfds_builder_of_audio_needs_tensorflow(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="pip install tensorflow-cpu.*--rate"):
        listed("tfds", "ljspeech", data_dir=str(tmp_path))


@pytest.mark.skipif(NO_TFDS, reason="tensorflow-datasets is optional (extra tfds)")
def test_an_unknown_tfds_builder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no TFDS builder 'nonesuch'"):
        listed("tfds", "nonesuch", data_dir=str(tmp_path))


def test_a_missing_package_is_one_clear_error(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'speechmos'")

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"--dnsmos needs.*'\.\[eval\]'"):
        optional.load("data.preparation.dnsmos")


def test_the_recordings_of_this_checkout_have_text_and_voice():
    clips = listed("folder", "tests/recordings/clips")
    assert len(clips) == 16
    assert {clip.language for clip in clips} == {"english", "italian"}
    assert all(clip.text and clip.speaker for clip in clips)
    assert all(1.5 < soundfile.info(clip.audio).duration < 5 for clip in clips)
