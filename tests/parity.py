"""Golden files, the checkpoints they were made from, and how to compare the two.

Every comparison is a test that takes the fixture `golden`, a `Golden`: of a committed
file, or, under `-m oracle`, of one that the official package has just made from fresh
weights.  Tolerances are in standard deviations of the golden values; `worst` keeps the
largest error of each quantity for the summary after the tests.
"""

import dataclasses
import functools
import json
import os
import pathlib

import inputs
import jax
import make
import numpy as np
import pytest
import safetensors

from qwen3tts_jax import model as models
from qwen3tts_jax.generation import prompt, voice_clone
from qwen3tts_jax.training.lm import losses

GOLDEN = pathlib.Path(__file__).parent / "golden"

# float32 sums in another order, layer after layer, differ by up to 1e-5 standard
# deviations (the official code against itself with one and with two threads: 5e-6 for
# logits, 2e-5 for waves).  These are ten times that.
CLOSE = 1e-4
WAVE_CLOSE = 2e-4
# A choice is nearly a tie when such errors could turn its two best scores over.
TIE = 1e-4


# ------------------------------------------------------------------ golden files


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """What the official package made of one checkpoint.

    Attributes:
        name: of the file.
        arrays: its tensors; notes: its JSON notes; see golden/dump_official.py.
        directory: the checkpoint.
    """

    name: str
    arrays: dict[str, np.ndarray]
    notes: dict
    directory: pathlib.Path

    @classmethod
    def read(cls, path: pathlib.Path, directory: pathlib.Path) -> "Golden":
        arrays, notes = read(path)
        check_checkpoint(path, notes, directory)
        return cls(path.name, arrays, notes, directory)

    @functools.cached_property
    def model(self) -> models.Qwen3TTSModel:
        tts = models.Qwen3TTSModel.from_pretrained(self.directory, dtype="float32")
        # Without its tables of names, which prompts take from the whole configuration,
        # models of one size share their compiled programs.
        talker = tts.language_model.talker
        tables = dict(language_ids=(), speaker_ids=(), speaker_dialects=())
        talker.config = dataclasses.replace(talker.config, **tables)
        return tts

    @property
    def committed(self) -> bool:
        """Whether its checkpoint was chosen, not made from any seed."""
        return any(spec.seed == self.seed for spec in make.SPECS)

    @property
    def seed(self) -> int:
        """Of the inputs."""
        return self.notes["made_with"]["seed"]

    @property
    def cases(self) -> dict[str, inputs.Case]:
        variant = self.notes["checkpoint"]["variant"]
        return inputs.CASES[variant.removesuffix("_25hz")]

    @functools.cache  # noqa: B019 (a golden file lives as long as the tests)
    def utterances(self, name: str) -> list[models.Utterance]:
        """One of `cases`, ready to speak; reference codes are the official ones."""
        case, tts = self.cases[name], self.model
        options = dict(language=list(case.languages))
        options |= dict(non_streaming_mode=case.non_streaming)
        if tts.config.variant == "base":
            speak = tts.voice_clone_utterances
            options |= dict(voice_clone_prompt=self.voices(name))
        elif tts.config.variant == "custom_voice":
            speak = tts.custom_voice_utterances
            options |= dict(speaker=list(case.speakers), instruct=list(case.instructs))
        else:
            speak = tts.voice_design_utterances
            options |= dict(instruct=list(case.instructs))
        return speak(list(case.texts), **options)

    def voices(self, name: str) -> list[voice_clone.VoiceClonePromptItem]:
        """The voices of one of `cases`.

        Their codes are the official ones, so that a near tie between codewords is a
        matter of the encoder's tests alone.
        """
        case, waves, items = self.cases[name], inputs.references(self.seed), []
        for name, said in zip(case.references, case.reference_texts):
            items += self.model.create_voice_clone_prompt(
                (waves[name], inputs.SAMPLE_RATE),
                ref_text=said,
                x_vector_only_mode=said is None,
            )
            if said is not None:
                items[-1].ref_code = self.arrays[f"reference/{name}/codes"]
        return items

    @functools.cached_property
    def read_prompts(self) -> dict[str, list["ReadPrompt"]]:
        """Case -> rows.  All are read as one batch: one program, and more padding."""
        cases = {name: self.utterances(name) for name in self.cases}
        prompts = [u.prompt for rows in cases.values() for u in rows]
        found = iter(read_prompts(self.model, prompts))
        return {name: [next(found) for _ in rows] for name, rows in cases.items()}


def check_checkpoint(path: pathlib.Path, notes: dict, directory: pathlib.Path) -> None:
    """Raises AssertionError unless the golden file was made from this checkpoint."""
    found = make.fingerprint(directory)
    if changed := make.differences(notes["checkpoint"]["fingerprint"], found):
        raise AssertionError(
            f"the checkpoint is not the one that {path.name} was made from "
            f"({', '.join(changed)} changed): numpy's random streams, "
            "random_weights.py, released.py or tiny.py have changed; run "
            "tests/golden/make.py again"
        )


def read(
    path: pathlib.Path, fingerprints=inputs.fingerprints
) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, notes) of a golden file, after a check that the inputs are the same.

    fingerprints: of the inputs, by the seed.
    """
    with safetensors.safe_open(path, "numpy") as file:
        arrays = {key: file.get_tensor(key) for key in file.keys()}
        notes = json.loads(file.metadata()["notes"])
    found = fingerprints(notes["made_with"]["seed"])
    if changed := make.differences(notes["fingerprints"], found):
        raise AssertionError(
            f"the inputs are not those that {path.name} was made from "
            f"({', '.join(changed)} changed): numpy's random streams or inputs.py have "
            "changed; run tests/golden/make.py again"
        )
    return arrays, notes


@dataclasses.dataclass(frozen=True)
class ReadPrompt:
    """One prompt after the talker, padding cut off; float32 arrays.

    Attributes:
        embeds, hidden: [P, D], before the talker and after its last norm.
        trailing: [R, D], embedded; tts_pad: [D].
        logits: [V], of codebook 0 of the first frame.
    """

    embeds: np.ndarray
    hidden: np.ndarray
    trailing: np.ndarray
    tts_pad: np.ndarray
    logits: np.ndarray


ROWS, LENGTH, TRAILING = 14, 96, 32  # padded sizes: one program for each model size


def read_prompts(tts, prompts: list[prompt.Prompt]) -> list[ReadPrompt]:
    rows = prompts + prompts[:1] * (ROWS - len(prompts))
    # a reference has twice the frames at 25 Hz
    length = LENGTH * (1 + tts.config.single_codebook)
    batch = prompt.collate(tts.config, rows, length=length, trailing=TRAILING)
    read = _read(tts.language_model, fields(batch), np.int32([tts.config.tts_pad_id]))
    embeds, hidden, trailing, tts_pad, logits = map(np.asarray, read)
    return [
        ReadPrompt(
            embeds[row, pad:],
            hidden[row, pad:],
            trailing[row, : len(p.trailing)],
            tts_pad[0],
            logits[row],
        )
        for row, (p, pad) in enumerate(zip(prompts, batch.pads))
    ]


@jax.jit
def _read(lm, batch: dict, tts_pad_id):
    x, talker = lm.embed_prompt(batch), lm.talker
    length = x.shape[1]
    positions, mask = losses.left_padded(batch["pads"], length)
    hidden, _ = talker(x, positions, mask)
    trailing, tts_pad = map(talker.embed_text, (batch["trailing"], tts_pad_id))
    return x, hidden, trailing, tts_pad, talker.logits(hidden[:, -1])


def fields(batch: prompt.Batch) -> dict[str, np.ndarray]:
    return {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}


# --------------------------------------------------------------- which to compare

FRESH_SEED = int(os.environ.get("QWEN_TTS_SEED", 1001))  # of the live comparison
EVERYTHING = (*make.LANGUAGE, *make.CODEC, *make.CLONING)
FRESH = (
    make.Spec("base", "0.6B", FRESH_SEED, parts=EVERYTHING),
    make.Spec("custom_voice", "1.7B", FRESH_SEED + 1),
    make.Spec("voice_design", "0.6B", FRESH_SEED + 2, eos_gain=2.0),
    make.Spec("base", "1.7B", FRESH_SEED + 3, parts=EVERYTHING),
)


def official_python() -> str:
    """A Python with the official package; without one the test is skipped."""
    python = make.official_python()
    if python is None:
        pytest.skip("no official package: set QWEN_TTS_PYTHON to a python that has it")
    return python


def over(part: str):
    """Parametrise a test over every golden file that has this part."""
    committed = [pytest.param(s, id=s.name) for s in make.SPECS if part in s.parts]
    live = [
        pytest.param(s, id=f"live_{s.name}_{s.seed}", marks=pytest.mark.oracle)
        for s in FRESH
        if part in s.parts
    ]
    return pytest.mark.parametrize("golden", committed + live, indirect=True)


# --------------------------------------------------------------------- comparing

worst: dict[str, float] = {}  # quantity -> largest error in standard deviations


def assert_close(quantity: str, ours, theirs, tolerance: float, *, scale=None) -> None:
    """|ours - theirs| <= tolerance * scale (default: standard deviation of theirs)."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, quantity
    assert np.isfinite(theirs).all(), quantity
    scale = theirs.std() if scale is None else scale
    error = float(np.abs(ours - theirs).max() / scale)
    worst[quantity] = max(worst.get(quantity, 0.0), error)
    assert error <= tolerance, f"{quantity}: off by {error:.2g} of its spread"


def assert_codes(ours, theirs, ties, margins) -> int:
    """Codes [T, Q] equal; returns how many frames a near tie excuses.

    After a choice that was nearly a tie the later codebooks of that frame, which
    quantise what is left, may differ too.  ties: int [n, 2], (frame, codebook) of small
    margins.
    """
    assert ours.shape == theirs.shape
    excused = {tuple(at) for at, margin in zip(ties, margins) if margin < TIE}
    different = ours != theirs
    frames = np.flatnonzero(different.any(1))
    for frame in frames:
        first = (int(frame), int(different[frame].argmax()))
        assert first in excused, f"code {first}: {ours[first]}, not {theirs[first]}"
    return len(frames)


def assert_greedy(ours, theirs, length: int, first_margin, ties, margins) -> int:
    """One row's greedy codes [T, Q] equal, up to a choice that was nearly a tie.

    theirs: at least `length` frames, of which those count.  first_margin: [T], of
    codebook 0; ties: int [n, 2], (frame, codebook - 1) of the other small margins.
    Returns how many frames were compared.
    """
    frames = min(len(ours), length)
    different = np.argwhere(ours[:frames] != theirs[:frames])
    if not len(different) and len(ours) == length:
        return length
    # else: the first choice that differs, which ended one of the two if no code does
    frame, codebook = different[0] if len(different) else (frames, 0)
    at = {tuple(tie): margin for tie, margin in zip(ties, margins)}
    found = at.get((frame, codebook - 1), 1.0) if codebook else first_margin[frame]
    assert found < TIE, (
        f"frame {frame}, codebook {codebook}: not the official choice, whose margin is "
        f"{found:.2g} ({len(ours)} frames, official: {length})"
    )
    return int(frame)


def assert_wave(quantity: str, ours, arrays: dict, key: str) -> None:
    """A wave [W] against what golden/dump_codec.py keeps of it under `key`."""
    frames = ours.reshape(-1, inputs.SAMPLES_PER_FRAME).astype(np.float64)
    energy = arrays[f"{key}/energy"].astype(np.float64)
    scale = np.sqrt(energy.sum() / len(ours))  # about its standard deviation
    if f"{key}/wave" in arrays:
        assert_close(quantity, ours, arrays[f"{key}/wave"], WAVE_CLOSE, scale=scale)
    else:
        first, last = arrays[f"{key}/first"], arrays[f"{key}/last"]
        ends = ours[: len(first)], ours[len(ours) - len(last) :]
        assert_close(quantity, ends[0], first, WAVE_CLOSE, scale=scale)
        assert_close(quantity, ends[1], last, WAVE_CLOSE, scale=scale)
    assert_energy(quantity, frames, energy)


def assert_energy(quantity: str, frames, energy) -> None:
    """Frames [T, 1920] against their sums of squares [T].

    An error of e in every sample changes the norm of a frame by e * sqrt(1920) at most.
    """
    norm, theirs = np.sqrt(np.square(frames).sum(1)), np.sqrt(energy)
    scale = np.sqrt(energy.mean())
    assert_close(f"{quantity}, norm of frames", norm, theirs, WAVE_CLOSE, scale=scale)
