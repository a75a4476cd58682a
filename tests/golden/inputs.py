"""Inputs of the golden files, made again wherever they are needed (numpy only).

`dump_official.py` feeds them to the official package and stores what comes out; a test
feeds them to this package and compares. Everything random comes from
`numpy.random.default_rng`, whose streams numpy may change between versions: each golden
file therefore notes `fingerprints()`, so that a test can tell a changed input from a
wrong output.
"""

import dataclasses

import numpy as np

SAMPLE_RATE = 24000
SAMPLES_PER_FRAME = 1920  # 12.5 frames a second
CODEBOOKS = 16
CODEBOOK_SIZE = 2048
CODEC_VOCABULARY = 3072
CODEC_PAD, CODEC_EOS = 2148, 2150

# ------------------------------------------------------------------ waves and codes


def voice(samples: int, seed: int, rate: int = SAMPLE_RATE) -> np.ndarray:
    """A voice-like wave, float32 [samples]: moving harmonics, with pauses."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / rate
    pitch = rng.uniform(90, 240)
    pitch = pitch * (1 + 0.3 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = sum(
        rng.normal() / k * np.sin(k * phase + rng.uniform(0, 6)) for k in range(1, 24)
    )
    envelope = np.sin(2 * np.pi * rng.uniform(1, 3) * t + rng.uniform(0, 6)) + 0.5
    wave = wave * np.clip(envelope, 0, None) + 0.02 * rng.normal(size=samples)
    return (0.7 * wave / np.abs(wave).max(initial=1e-9)).astype(np.float32)


def codes(frames: int, seed: int) -> np.ndarray:
    """Random codes, int32 [frames, CODEBOOKS]."""
    shape = (frames, CODEBOOKS)
    return np.random.default_rng(seed).integers(
        CODEBOOK_SIZE, size=shape, dtype=np.int32
    )


def resample(wave: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """A plain windowed-sinc resampler that any machine repeats to the last bits.

    For the recording only: its codes are stored for this wave too, so that the encoder
    can be tested without trusting a resampler.
    """
    half, cutoff = 32, min(1.0, target / rate)
    ratio = np.arange(len(wave) * target // rate) * rate / target
    first = np.floor(ratio).astype(np.int64) - half + 1
    padded = np.pad(wave.astype(np.float64), (half, half))
    out = np.zeros(len(ratio))
    for tap in range(2 * half):
        distance = ratio - (first + tap)
        window = 0.5 + 0.5 * np.cos(np.pi * np.clip(distance / half, -1, 1))
        out += padded[first + tap + half] * cutoff * np.sinc(cutoff * distance) * window
    return out.astype(np.float32)


# Where each input's seed lies, relative to the seed of the golden file.
_REFERENCES, _SPEAKER, _ENCODE, _DECODE = 1, 10, 40, 60
_PREDICTOR, _TRAINING, _SAMPLING = 70, 80, 90

ENCODED = (15360, 15361, 15359, 72777, 1920, 500, 1)  # samples
ENCODED_TOGETHER = (0, 3, 1)  # which of them make the ragged batch
DECODED = (1, 7, 60, 300, 340)  # frames
DECODED_TOGETHER = (2, 0, 1)
SPOKEN = (72000, 24777, 9001)  # samples; the last two fill no whole mel frame
PREDICTED, TRAINED = 3, 9  # frames


def references(seed: int) -> dict[str, np.ndarray]:
    """The waves to clone, by the names that `Case.references` uses."""
    lengths = {"long": 4 * SAMPLE_RATE + 333, "short": 12077, "third": 48000}
    return {
        name: voice(samples, seed + _REFERENCES + i)
        for i, (name, samples) in enumerate(lengths.items())
    }


def speaker_waves(seed: int) -> list[np.ndarray]:
    return [voice(samples, seed + _SPEAKER + i) for i, samples in enumerate(SPOKEN)]


def encoder_waves(seed: int) -> list[np.ndarray]:
    return [voice(samples, seed + _ENCODE + i) for i, samples in enumerate(ENCODED)]


def decoder_codes(seed: int) -> list[np.ndarray]:
    return [codes(frames, seed + _DECODE + i) for i, frames in enumerate(DECODED)]


def predictor_inputs(seed: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Talker hidden states, float32 [PREDICTED, width], and codes [PREDICTED, 16]."""
    rng = np.random.default_rng(seed + _PREDICTOR)
    hidden = rng.standard_normal((PREDICTED, width)).astype(np.float32)
    return hidden, codes(PREDICTED, seed + _PREDICTOR + 1)


def training_codes(seed: int) -> np.ndarray:
    return codes(TRAINED, seed + _TRAINING)


# ------------------------------------------------------------------ prompts


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of a generate method, as a batch.

    references: names in `references()`, for cloning; reference_texts: what is said in
    them, None for cloning by the speaker vector alone.
    """

    texts: tuple[str, ...]
    languages: tuple[str, ...]
    non_streaming: bool
    speakers: tuple[str, ...] = ()
    instructs: tuple[str | None, ...] = ()
    references: tuple[str, ...] = ()
    reference_texts: tuple[str | None, ...] = ()


ENGLISH = "Hello there, this is a short test of the voice, spoken in a calm way."
CHINESE = "今天天气真好，我们去公园散步吧。"
FRENCH = (
    "Bonjour, je voudrais un café et un croissant, s'il vous plaît; "
    "merci beaucoup, à demain!"
)
CALM = "Speak slowly, in a low and warm voice."
DEEP = "低沉的男声"
SAID = "This is what I said."
_THREE = (ENGLISH, CHINESE, FRENCH)


def _custom(text, speaker, language, non_streaming=True, instruct=None):
    return Case((text,), (language,), non_streaming, (speaker,), (instruct,))


def _design(instruct, language, non_streaming=True):
    return Case((ENGLISH,), (language,), non_streaming, instructs=(instruct,))


def _clone(text, language, reference, said=None, non_streaming=False):
    return Case(
        (text,),
        (language,),
        non_streaming,
        references=(reference,),
        reference_texts=(said,),
    )


def _custom_voice_cases() -> dict[str, Case]:
    speakers, languages = ("ryan", "eric", "sohee"), ("English", "Auto", "French")
    return {
        "stream": _custom(ENGLISH, "Ryan", "English", non_streaming=False),
        "nonstream": _custom(ENGLISH, "Ryan", "English"),
        "auto": _custom(FRENCH, "vivian", "Auto", non_streaming=False),
        "dialect_chinese": _custom(CHINESE, "Eric", "Chinese"),
        "dialect_auto": _custom(CHINESE, "dylan", "Auto"),
        "dialect_english": _custom(ENGLISH, "dylan", "English"),
        # a 0.6B model drops every instruction without a word
        "instruct": _custom(ENGLISH, "aiden", "English", instruct=CALM),
        "batch": Case(_THREE, languages, True, speakers, (CALM, "", None)),
        "batch_stream": Case(_THREE, languages, False, speakers, (None,) * 3),
    }


def _voice_design_cases() -> dict[str, Case]:
    languages, instructs = ("English", "Chinese", "Auto"), (CALM, "", DEEP)
    return {
        "design": _design(CALM, "English"),
        "design_stream": _design(CALM, "English", non_streaming=False),
        "no_instruct": _design("", "Auto"),
        "batch": Case(_THREE, languages, True, instructs=instructs),
        "batch_stream": Case(_THREE, languages, False, instructs=instructs),
    }


def _base_cases() -> dict[str, Case]:
    three = {
        "references": ("short", "long", "third"),
        "reference_texts": (SAID, None, CHINESE),
    }
    return {
        "x_vector": _clone(ENGLISH, "English", "long"),
        "x_vector_nonstream": _clone(ENGLISH, "English", "long", non_streaming=True),
        "x_vector_auto_nonstream": _clone(ENGLISH, "Auto", "short", non_streaming=True),
        "icl_text_longer": _clone(FRENCH, "French", "short", SAID),
        "icl_codes_longer": _clone(CHINESE, "Chinese", "long", SAID),
        "icl_nonstream": _clone(ENGLISH, "Auto", "short", SAID, non_streaming=True),
        "batch": Case(_THREE, ("English", "Chinese", "Auto"), False, **three),
        "batch_nonstream": Case(_THREE, ("English",) * 3, True, **three),
    }


CASES = {
    "base": _base_cases(),
    "custom_voice": _custom_voice_cases(),
    "voice_design": _voice_design_cases(),
}

# The cases whose prompts the training losses continue: streaming, non-streaming.
TRAINING_CASES = {
    "base": ("x_vector", "x_vector_nonstream"),
    "custom_voice": ("stream", "nonstream"),
    "voice_design": ("design_stream", "design"),
}

# ------------------------------------------------------------------ sampling


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a row of logits becomes probabilities; step: length of the row's history.

    talker: suppress ids 2048..3071 except CODEC_EOS, and ban CODEC_EOS in the first two
    steps; else (the code predictor) neither.
    """

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.05
    step: int = 12
    talker: bool = True


def _settings() -> tuple[Setting, ...]:
    temperatures, ks, ps = (0.3, 0.9, 1.7), (0, 1, 5, 50, 5000), (0.1, 0.5, 0.9, 1.0)
    predictor = {"repetition_penalty": 1.0, "talker": False}
    chosen = [Setting(temperature=t, top_k=k) for t in temperatures for k in ks]
    chosen += [
        Setting(temperature=t, top_k=0, top_p=p) for t in temperatures for p in ps
    ]
    chosen += [Setting(top_k=k, top_p=p) for k in ks for p in ps]
    for penalty in (1.0, 1.05, 1.5):
        chosen += [Setting(repetition_penalty=penalty, step=s) for s in (0, 1, 2, 12)]
        chosen += [Setting(1.7, 0, 0.9, repetition_penalty=penalty)]
    chosen += [
        Setting(top_k=k, top_p=p, **predictor) for k in (0, 50) for p in (0.9, 1.0)
    ]
    return tuple(dict.fromkeys(chosen))


SETTINGS = _settings()
TIED_ROW = 4  # of sampling_logits: which of equal logits top-p keeps is left open
_HISTORY = 12


def sampling_logits(seed: int) -> np.ndarray:
    """Six unlike rows, float32 [6, CODEC_VOCABULARY]."""
    rng = np.random.default_rng(seed + _SAMPLING)
    rows = rng.standard_normal((6, CODEC_VOCABULARY))
    rows *= np.array([2, 2, 6, 0.05, 2, 2])[
        :, None
    ]  # the rest, a peaked one, a flat one
    rows[0, CODEC_EOS] = rows[0].max() + 1  # the end would win
    rows[TIED_ROW] = np.round(4 * rows[TIED_ROW]) / 4
    rows[5] -= 20  # the penalty multiplies negative logits
    return rows.astype(np.float32)


def sampling_history(seed: int) -> np.ndarray:
    """First codes generated before, int32 [6, 12], mostly likely and repeated ones.

    At step s a row has seen its first s entries. Row 3 ended at step 6, then padding.
    """
    rng = np.random.default_rng(seed + _SAMPLING + 1)
    likely = np.argsort(-sampling_logits(seed)[:, :CODEBOOK_SIZE], axis=1)[:, :20]
    history = rng.permuted(likely, axis=1)[:, :_HISTORY]
    history[:, 3:6] = rng.integers(CODEBOOK_SIZE, size=(6, 3))
    history[:, 8] = history[:, 7]
    history[3, 6:] = CODEC_PAD
    return history.astype(np.int32)


# ------------------------------------------------------------------ fingerprints


def fingerprints(seed: int) -> dict[str, list[float]]:
    """{input: [mean, standard deviation, last element]}, to compare within 1e-6."""
    made = {f"references/{name}": wave for name, wave in references(seed).items()}
    for name, arrays in {
        "speaker": speaker_waves(seed),
        "encode": encoder_waves(seed),
        "decode": decoder_codes(seed),
        "predictor": predictor_inputs(seed, 64),
        "training": [training_codes(seed)],
        "sampling": [sampling_logits(seed), sampling_history(seed)],
    }.items():
        made |= {f"{name}/{i}": array for i, array in enumerate(arrays)}
    return summaries(made)


def summaries(arrays: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Mean, standard deviation and last element of each."""
    return {
        name: [float(np.mean(a, dtype=np.float64)), float(np.std(a)), float(a.flat[-1])]
        for name, a in arrays.items()
    }


# ------------------------------------------------------------------ texts

TEXTS = (
    ENGLISH,
    CHINESE,
    FRENCH,
    CALM,
    DEEP,
    "",
    " ",
    "HelloWorld from OpenAI's iPhone, an eBook and a McDonald's in NYCity",
    "I'LL SAY IT'S 2024年! They've, we're, you'd, I'm; don't 'tis o'clock",
    "numbers 1234567 3.14159 1,000,000 12:30pm v2.0.1 ٣٤٥ ⅔ x² H₂O",
    "naïve café  \t x   ",
    "cafe\u0301 e\u0301\u0302 A\u030a n\u0303 \u1100\u1161\u11a8 \u212b ﬁ Å",
    "हिन्दी में बोलिए: नमस्ते दुनिया",
    "ภาษาไทยไม่มีช่องว่าง",
    "emoji 😀👍🏽 👨‍👩‍👧 🇩🇪 and/or\nslash/",
    "こんにちは、世界。カタカナとひらがな、漢字ABC",
    "안녕하세요 세계! 반갑습니다.",
    "Привет, как дела? Ёжик в тумане — №5",
    "Ich heiße Jürgen – schön! „Größe“ ÄÖÜ",
    "¿Qué tal? ¡Mañana será otro día! São João, ação, não",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם",
    "\nstarts with a newline",
    "ends with newlines\n\n\n",
    "tabs\tand\r\nWindows\r\n\r\nlines\n \n  indented",
    "  two leading spaces\u00a0no-break\u3000wide\u200bzero width",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<tts_pad><tts_text_bos>x<tts_text_eod> <think>no</think> <|audio_start|>",
    "<|im_start|><|IM_END|><|im_end |> <|fim_prefix|>def f():<tool_call>{}</tool_call>",
    "[laughter] (whispers) *bold* #tag @user $5.99 50% a+b=c ~~ ``` \\n {x} <b>",
    "https://example.org/path?q=1&r=%20#top me@example.org C:\\dir",
    "ALLCAPS sHoUtInG snake_case kebab-case CamelCaseHTTPServer x1y2",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!!!!!!!........???",
    "𝒳𝔂 𠮷野家 \U0001f9d1\u200d\U0001f680 \ufffd \u0000 end",
)
LONG_PIECE, LONG_TIMES = "The year 2024年, café No. 7 — iPhone's done!\n\n 好的😀 ", 500
