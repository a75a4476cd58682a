"""Check by speech recognition that the clips say their texts (extra corpus).

    python -m data.small_family.asr_check --out DIR --model WHISPER

Rates of errors are appended to DIR/asr.jsonl; what stands there is not heard again.
Chinese is compared in Pinyin without tones and Japanese in Kana: a recogniser that
writes another character of the same sound has heard well.  Else letters are compared.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import faster_whisper
import numpy as np
import opencc
import pyopenjtalk
import pypinyin
import soundfile

from data.small_family import agreement, manifests, reading
from data.small_family import reading_plan as plan
from qwen3tts_jax import metrics
from qwen3tts_jax.audio import io as audio

RATE = 16_000  # Hz, of Whisper
SAY_EVERY = 60.0  # seconds
SIMPLIFY = opencc.OpenCC("t2s").convert


class Hearing:
    """Whisper on one thread with 8-bit weights, greedy."""

    def __init__(self, model: Path):
        self._model = faster_whisper.WhisperModel(
            str(model), cpu_threads=1, compute_type="int8", local_files_only=True
        )

    def units(self, wave: np.ndarray, language: str) -> list[str]:
        """What is heard in float32 [W] at 16 kHz, in `units`."""
        segments, _ = self._model.transcribe(
            wave,
            language=language,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return units(" ".join(segment.text for segment in segments), language)


def units(text: str, language: str) -> list[str]:
    """What is compared: letters, of Chinese syllables, of Japanese Kana."""
    if language == "ja":
        words = pyopenjtalk.run_frontend(_letters(text), use_sudachi_kanji_yomi=False)
        return list(_letters("".join(word["pron"] for word in words)))
    if language == "zh":
        return pypinyin.lazy_pinyin(SIMPLIFY(_letters(text)))
    return list(_letters(text))


def _letters(text: str) -> str:
    return metrics.normalize(text).replace(" ", "").replace("'", "")


def run(out: Path, hearing: Hearing, say) -> int:
    """Hear what is there and was not heard yet; returns how many clips that was."""
    heard, start, told = 0, time.monotonic(), time.monotonic()
    known = set(manifests.rates(out))
    for language, readings in plan.load(out).items():
        left = {
            one.id: one
            for one in readings
            if one.id not in known and (out / one.audio).is_file()
        }
        lengths = [(n, reading.seconds(out / one.audio)) for n, one in left.items()]
        for pack in agreement.packs(lengths):
            rates = _judge([left[name] for name in pack], out, hearing, language)
            with open(out / manifests.RATES, "a", encoding="utf-8") as file:
                for name, rate in zip(pack, rates):
                    file.write(json.dumps(dict(id=name, cer=round(rate, 4))) + "\n")
            heard += len(pack)
            if (now := time.monotonic()) - told >= SAY_EVERY:
                told = now
                say(f"{language}: {heard} clips heard in {now - start:.0f} s")
    return heard


def _judge(
    pack: list[plan.Reading], out: Path, hearing: Hearing, language: str
) -> list[float]:
    waves = [_wave(out / one.audio) for one in pack]
    return agreement.judge(
        [units(one.text, language) for one in pack],
        lambda: hearing.units(agreement.join(waves, RATE), language),
        lambda place: hearing.units(waves[place], language),
        agreement.MOST[language],
    )


def _wave(path: Path) -> np.ndarray:
    wave, rate = soundfile.read(path, dtype="float32")
    return audio.resample(wave, rate, RATE)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args(argv)
    heard = run(
        args.out,
        Hearing(args.model),
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(f"{heard} clips heard")


if __name__ == "__main__":
    main()
