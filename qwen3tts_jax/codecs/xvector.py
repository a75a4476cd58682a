"""The x-vector of a voice, which the DiT is conditioned on.

The official tokenizer brings a CAM++ model for it as an ONNX file.  Where that is not
there, our own speaker encoder may stand in its place, if the DiT was trained with it.
One is never taken for the other: vectors of two models have nothing in common.
"""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from qwen3tts_jax.checkpoints import hub, key_tables
from qwen3tts_jax.checkpoints import weights as weight_files
from qwen3tts_jax.config import section as sections
from qwen3tts_jax.config import tokenizer_25hz, tts
from qwen3tts_jax.models import speaker_encoder
from qwen3tts_jax.models.tokenizer_25hz import features

CAMPPLUS, SPEAKER_ENCODER, NONE = "campplus", "speaker_encoder", "none"  # kinds
FILES = {CAMPPLUS: "campplus.onnx", SPEAKER_ENCODER: "speaker_encoder.safetensors"}
CONFIG_KEY = "speaker_encoder_config"  # of config.json
DIM = ("enc_emb_dim", int)  # of dit_config: D
NORM_FLOOR = 1e-12  # of the length that a vector is divided by
THREADS = 1  # as officially: the model is small


@dataclasses.dataclass(frozen=True, eq=False)
class XVectors:
    """What makes x-vectors of one tokenizer.

    Attributes:
        kind: "campplus", the official model; "speaker_encoder", ours; "none".
        dim: D, of the vectors.
        directory: of the tokenizer.
        run: (float32 [W], 16 kHz, at -6 dBFS) -> float32 [D]; raises for "none".
    """

    kind: str
    dim: int
    directory: Path
    run: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def open(
        cls, directory: Path, config: tokenizer_25hz.Tokenizer25HzConfig
    ) -> "XVectors":
        """What a tokenizer's directory has: the official model before ours.

        The official one is read when it is first used.
        Raises: ValueError for weights of ours that do not fit config.json, or whose
            vectors do not fit the DiT.
        """
        directory, dim = Path(directory), config.dit.xvector_dim
        if (directory / FILES[CAMPPLUS]).is_file():
            return cls(CAMPPLUS, dim, directory, _Campplus(directory / FILES[CAMPPLUS]))
        if (directory / FILES[SPEAKER_ENCODER]).is_file():
            encoder = _load(directory)
            run = functools.partial(
                speaker_encoder.embed_wave, encoder, rate=features.RATE
            )
            return cls(SPEAKER_ENCODER, dim, directory, run)
        return cls(NONE, dim, directory, functools.partial(_refuse, directory))

    def reference(self, wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All that the decoder has to know of a voice.

        wave: float [W], 16 kHz, in [-1, 1], W >= 800: some seconds of speech.
        Returns: (x-vector float32 [D] of length 1, reference mel float32 [W // 160,
            80]), of the wave at -6 dBFS.
        Raises:
            ValueError: the wave is too short, or the model or its vectors are not what
                they should be.
            FileNotFoundError: the tokenizer has neither model.
            ModuleNotFoundError: the official one needs a package that is not there.
        """
        wave = features.normalize(wave)
        mel = features.reference_mel(wave)
        vector = np.asarray(self.run(wave), np.float32)
        if vector.shape != (self.dim,):
            raise ValueError(
                f"got an x-vector of shape {list(vector.shape)} from {self.kind} in "
                f"{self.directory}, expected [{self.dim}] as in config.json; use the "
                "file that belongs to this tokenizer"
            )
        return vector / max(float(np.linalg.norm(vector)), NORM_FLOOR), mel

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        """The x-vector, float32 [D] of length 1: see `reference`."""
        return self.reference(wave)[0]

    def save(self, out: Path) -> None:
        """Copy the model's file, if there is one, to another directory."""
        if name := FILES.get(self.kind):
            shutil.copyfile(self.directory / name, Path(out) / name)


class _Campplus:
    """CAM++: Kaldi's filter bank less its mean, through onnxruntime."""

    def __init__(self, path: Path):
        self._path = path

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        bank = features.fbank(wave)
        bank = bank - bank.mean(axis=0, keepdims=True)
        session = self._session
        name = session.get_inputs()[0].name
        return session.run(None, {name: bank[None]})[0].flatten()

    @functools.cached_property
    def _session(self):
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{self._path} makes x-vectors with onnxruntime, which is not "
                "installed; pip install 'qwen3tts_jax[onnx]', or give the x-vector"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        cpu = ["CPUExecutionProvider"]
        try:
            return onnxruntime.InferenceSession(self._path, options, providers=cpu)
        except Exception as error:  # onnxruntime has a type of its own for each cause
            raise ValueError(
                f"{self._path} is not a whole ONNX model ({error}; it has "
                f"{self._path.stat().st_size} bytes); download it again"
            ) from error


def speaker_encoder_part(values: dict) -> tuple:
    """(abstract module, its key table) of our own model, by a parsed config.json.

    Raises: ValueError where that does not describe one, or one for another DiT.
    """
    section = sections.Section(values, "config.json")
    config = tts.SpeakerEncoderConfig.read(section.section(CONFIG_KEY))
    dim = section.section("decoder_config").section("dit_config").need(*DIM)
    if not section.problems and config.dim != dim:
        section.problems.append(
            f"config.json.{CONFIG_KEY}.enc_dim: got {config.dim}, expected {dim}, the "
            f"{DIM[0]} of dit_config"
        )
    section.finish()
    abstract = weight_files.abstract(speaker_encoder.SpeakerEncoder, config)
    return abstract, key_tables.speaker_encoder_rules(config)


def _load(directory: Path) -> speaker_encoder.SpeakerEncoder:
    part = speaker_encoder_part(hub.read_json(directory / "config.json"))
    weights = FILES[SPEAKER_ENCODER]
    loaded = weight_files.load(
        directory, dict(it=part), dtype=jnp.float32, weights=weights
    )
    return loaded["it"]


def _refuse(directory: Path, wave: np.ndarray) -> np.ndarray:
    raise FileNotFoundError(
        f"{directory} has neither {' nor '.join(FILES.values())}, so that no x-vector "
        "can be made of a wave; put there the one that this tokenizer was trained "
        "with, or give the x-vector"
    )
