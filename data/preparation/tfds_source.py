"""Clips of a TFDS speech builder, such as ljspeech (extra tfds).

Rows are read by number (`as_data_source`), which needs the builder's files to be
ArrayRecord.  TFDS itself cannot handle features.Audio without TensorFlow: install
tensorflow-cpu beside this package, or store int16 tensors (features.Tensor).
"""

import hashlib

import numpy as np
import tensorflow_datasets as tfds

from data.preparation import clip, sources

AUDIO = ("speech", "audio", "wav")
TEXT = ("text_normalized", "text", "transcript", "transcription", "sentence")
OTHER = dict(
    id=("id", "audio_id", "path"),
    language=("language", "lang"),
    speaker=("speaker", "speaker_id"),
    instruct=("instruct",),
)
NO_TENSORFLOW = (
    "the TFDS builder {name!r} cannot be read without TensorFlow ({error}): its audio "
    "is features.Audio; do: pip install tensorflow-cpu (and pydub, to build it), or "
    "make a builder with features.Tensor(shape=(None,), dtype=np.int16) and give --rate"
)
NO_RANDOM_ACCESS = (
    "the TFDS builder {name!r} in {where} cannot be read by row ({error}); do: "
    "tfds build {name} --file_format=array_record"
)


class Builder(sources.Source):
    """The rows of one split."""

    def __init__(self, spec: sources.Spec):
        self.spec = spec
        try:
            builder = tfds.builder(spec.where, data_dir=spec.data_dir)
            self._data = builder.as_data_source(split=spec.split)
        except ModuleNotFoundError as error:
            text = NO_TENSORFLOW.format(name=spec.where, error=error)
            raise ModuleNotFoundError(text) from error
        except tfds.core.DatasetNotFoundError as error:
            raise FileNotFoundError(
                f"there is no TFDS builder {spec.where!r} ({error}); check the name "
                "and --data_dir"
            ) from error
        except (NotImplementedError, AssertionError, ValueError) as error:
            text = NO_RANDOM_ACCESS.format(
                name=spec.where, where=spec.data_dir or "TFDS's folder", error=error
            )
            raise ValueError(text) from error
        self.name, features = builder.info.full_name, builder.info.features
        self._rows = min(len(self._data), spec.limit or len(self._data))
        self._audio = _pick(features, AUDIO, "audio", spec.where)
        self._text = _pick(features, TEXT, "text", spec.where)
        self._keys = {
            name: next((key for key in keys if key in features), None)
            for name, keys in OTHER.items()
        }
        self.rate = spec.rate or getattr(features[self._audio], "sample_rate", None)
        if not self.rate:
            raise ValueError(
                f"the TFDS builder {spec.where!r} tells no sample rate; give --rate"
            )

    def clips(self, start: int, stop: int) -> list[clip.Clip]:
        rows = list(range(start, min(stop, len(self))))
        found = self._data.__getitems__(rows) if rows else []
        return [self._clip(row, example) for row, example in zip(rows, found)]

    def fingerprint(self) -> str:
        """A hash of name, version, split and number of rows."""
        facts = (self.name, self.spec.split, len(self._data), self.rate)
        return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()

    def check(self) -> set[str]:
        """Nothing to find beforehand: ids are made unique by the number of the row."""
        return set()

    def _clip(self, row: int, example: dict) -> clip.Clip:
        def text(name: str) -> str:
            key = self._keys.get(name, name)
            value = example[key] if key else ""
            return (
                value.decode("utf-8", "replace")
                if isinstance(value, bytes)
                else (str(value))
            )

        self_name = text("id")
        speaker = text("speaker")
        return clip.Clip(
            id=f"{self.name}/{self.spec.split}/{row}"
            + f"/{self_name}" * bool(self_name),
            audio=(_samples(example[self._audio]), self.rate),
            text=sources.tidy(text(self._text)),
            language=sources.language_name(text("language") or self.spec.language),
            speaker=f"{self.name}/{speaker}" if speaker else self.spec.speaker,
            source=self.name,
            instruct=sources.tidy(text("instruct")),
        )


def _samples(value) -> np.ndarray:
    """features.Audio gives int64 with the values of int16."""
    value = np.asarray(value)
    wide = value.dtype.kind == "i" and value.dtype != np.int16
    return value.astype(np.int16) if wide else value


def _pick(features, names: tuple, what: str, builder: str) -> str:
    for name in names:
        if name in features:
            return name
    raise ValueError(
        f"the TFDS builder {builder!r} has the features {', '.join(features)}, "
        f"expected one of {', '.join(names)} for the {what}"
    )
