"""The official package's side of `speed`: one task, one line of JSON on stdout.

Run by `python -m eval.benchmarks.speed --against official` with the Python of an
environment of its own that has qwen-tts:

    pip install torch transformers==4.57.3 accelerate einops librosa onnxruntime
    pip install soundfile && pip install --no-deps qwen-tts==0.1.1 torchaudio sox

What torchaudio and sox serve (the 25 Hz tokenizer's speaker front end) is not used
here, and either may fail to import, so both may be empty: torchaudio keeps only its
pure Python parts, whose import needs no compiled library.

A 25Hz checkpoint is measured in parts, see `speed`: the language model without
codec and predictor, and the classes of the codec without the x-vector model.
"""

import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import resource
import shutil
import sys
import time
import types
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _without_libraries(name: str) -> types.ModuleType:
    """A package that skips its own __init__ but still finds its submodules."""
    found = importlib.util.find_spec(name)
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = list(found.submodule_search_locations) if found else []
    return module


sys.modules["torchaudio"] = _without_libraries("torchaudio")
if shutil.which("sox") is None:
    sys.modules["sox"] = types.ModuleType("sox")

import numpy as np  # noqa: E402
import qwen_tts  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from qwen_tts.core import Qwen3TTSTokenizerV1Model  # noqa: E402
from qwen_tts.core.models import modeling_qwen3_tts  # noqa: E402

transformers.logging.set_verbosity_error()

FEW_FRAMES = 2  # the short run, whose time is taken off the long one's
REFERENCE_FRAMES, MEL_LEVEL = 300, -5.0  # of a 25Hz reference mel, as on our side
METHODS = dict(
    base="generate_voice_clone",
    custom_voice="generate_custom_voice",
    voice_design="generate_voice_design",
)


class Stopwatch:
    """A function that adds up the time it takes."""

    def __init__(self, function, device: str):
        self.function, self.device, self.seconds = function, device, 0.0

    def __call__(self, *args, **kwargs):
        seconds, result = timed(self.device, self.function, *args, **kwargs)
        self.seconds += seconds
        return result


class CodesKept:
    """Stands where the codec is, so that speaking stops at the codes."""

    def encode(self, waves, sr: int):
        """No codes: of a reference only the speaker embedding is used."""
        count = len(waves) if isinstance(waves, list) else 1
        return types.SimpleNamespace(audio_codes=[None] * count)

    def decode(self, encoded):
        self.codes = encoded[0]["audio_codes"].cpu().numpy()
        return [None], None


def timed(device: str, function, *args, **kwargs):
    """(seconds, result)."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def load(job: dict):
    """The checkpoint, with an end token that greedy choice never takes."""
    place = {} if job["device"] == "cpu" else dict(device_map=job["device"])
    dtype = getattr(torch, job["dtype"])
    with without_codec() if job["single_codebook"] else contextlib.nullcontext():
        tts = qwen_tts.Qwen3TTSModel.from_pretrained(job["model"], dtype=dtype, **place)
    eos = tts.model.config.talker_config.codec_eos_token_id
    tts.model.talker.codec_head.weight.data[eos] = 0
    if job["single_codebook"]:
        tts.model.talker.code_predictor.generate = no_more_codes
    return tts


def without_codec():
    """Loading of a 25Hz checkpoint, whose codec does not load without CAM++."""
    loader = types.SimpleNamespace(from_pretrained=lambda *_, **__: CodesKept())
    return mock.patch.object(modeling_qwen3_tts, "Qwen3TTSTokenizer", loader)


def no_more_codes(inputs_embeds, **_):
    """What the predictor of a single codebook has to say; the official one fails."""
    nothing = torch.zeros(len(inputs_embeds), 0, dtype=torch.long)
    return types.SimpleNamespace(sequences=nothing.to(inputs_embeds.device))


def frame_maker(tts, job: dict):
    """The public method as count -> codes [count, Q], without the codec."""
    request = dict(job["request"])
    if reference := request.pop("ref_audio", None):
        only = request.pop("x_vector_only_mode")
        voice = tts.create_voice_clone_prompt(reference, x_vector_only_mode=only)
        request["voice_clone_prompt"] = voice
    speak = getattr(tts, METHODS[tts.model.tts_model_type])

    def make(count: int) -> np.ndarray:
        codec, tts.model.speech_tokenizer = tts.model.speech_tokenizer, CodesKept()
        try:  # N tokens make at most N - 1 frames
            speak(**request, **job["options"], max_new_tokens=count + 1)
            codes = tts.model.speech_tokenizer.codes
        finally:
            tts.model.speech_tokenizer = codec
        if len(codes) != count:
            raise ValueError(f"got {len(codes)} frames, expected {count}: greedy ended")
        return codes

    return make


def best(calls: dict, device: str) -> dict:
    """Name -> seconds of the better of two calls, after an unmeasured one."""
    for call in calls.values():
        call()
    return {
        key: min(timed(device, call)[0] for _ in range(2))
        for key, call in calls.items()
    }


def time_codec(codec, codes: np.ndarray, wave: np.ndarray, job: dict) -> dict:
    """Seconds of decoding and encoding."""
    calls = dict(
        seconds_decode=lambda: codec.decode([dict(audio_codes=codes)]),
        seconds_encode=lambda: codec.encode(wave, sr=job["wave_rate"]),
    )
    return best(calls, job["device"])


class Codec25Hz:
    """The 25Hz codec alone, without the x-vector model that its loader asks for."""

    def __init__(self, job: dict):
        read = transformers.PreTrainedModel.from_pretrained.__func__
        directory = os.path.join(job["model"], "speech_tokenizer")
        model = read(Qwen3TTSTokenizerV1Model, directory, dtype=torch.float32)
        self.model, self.device = model.eval().to(job["device"]), job["device"]
        rng, config = np.random.default_rng(1), self.model.decoder.dit.config
        vector = rng.normal(size=(1, config.enc_emb_dim))
        mel = rng.normal(size=(1, REFERENCE_FRAMES, config.mel_dim))
        self.vector = self._tensor(vector / np.linalg.norm(vector))
        self.reference = self._tensor(MEL_LEVEL + 2 * mel)

    def _tensor(self, x: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.float32(x), device=self.device)

    @torch.inference_mode()
    def decode(self, codes: np.ndarray):
        """Wave of codes [T, 1], in nobody's voice."""
        codes = torch.from_numpy(codes.T.astype(np.int64)).to(self.device)
        return self.model.decode(codes, self.vector, self.reference)

    @torch.inference_mode()
    def time(self, codes: np.ndarray, wave: np.ndarray) -> dict:
        """Seconds of decoding, of its parts, and of making codes."""
        dit, bigvgan = self.model.decoder.dit, self.model.decoder.bigvgan
        code_row = torch.from_numpy(codes.T.astype(np.int64)).to(self.device)
        frames = len(codes) * dit.config.repeats
        mel = self._tensor(np.full((1, dit.config.mel_dim, frames), MEL_LEVEL))
        wave = self._tensor(wave)
        calls = dict(
            seconds_decode=lambda: self.decode(codes),
            seconds_codes=lambda: self.model.encoder.quantize_speech([wave]),
            seconds_dit=lambda: dit.sample(self.vector, self.reference, code_row),
            seconds_bigvgan=lambda: bigvgan(mel),
        )
        return best(calls, self.device)


def peak_memory(device: str) -> float:
    """GiB: of the device where it is a GPU, else of this process."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(job: dict) -> dict:
    """Everything but the start; see `worker_jax.measure`."""
    device, frames, single = job["device"], job["frames"], job["single_codebook"]
    load_seconds, tts = timed(device, load, job)
    make = frame_maker(tts, job)
    first, _ = timed(device, make, FEW_FRAMES)
    few = min(timed(device, make, FEW_FRAMES)[0] for _ in range(3))
    predictor = tts.model.talker.code_predictor
    watch = predictor.generate = Stopwatch(predictor.generate, device)
    many, codes = timed(device, make, frames)
    frame = (many - few) / (frames - FEW_FRAMES)
    found = dict(
        seconds_load=load_seconds,
        seconds_compile=first - few,
        seconds_prefill=few - FEW_FRAMES * frame,
        seconds_per_frame=frame,
        codes=codes.tolist(),
    )
    if not single:
        predicting = watch.seconds / frames
        found["seconds_per_frame_predictor"] = predicting
        found["seconds_per_frame_talker"] = frame - predicting
    return found | measure_codec(tts, codes, job)


def measure_codec(tts, made: np.ndarray, job: dict) -> dict:
    """The codec, and the memory that it and the model take to decode what was made."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, job["codebook"], (job["codec_frames"], made.shape[1]))
    wave = rng.normal(0, 0.1, job["wave_samples"]).astype(np.float32)
    if job["single_codebook"]:
        codec = Codec25Hz(job)
        codec.decode(made)
        peak, dtype = peak_memory(job["device"]), codec.model.dtype
        seconds = codec.time(codes, wave)
    else:
        codec = tts.model.speech_tokenizer
        codec.decode([dict(audio_codes=made)])
        peak, dtype = peak_memory(job["device"]), codec.model.dtype
        seconds = time_codec(codec, codes, wave, job)
    name = str(dtype).removeprefix("torch.")
    return seconds | dict(peak_memory_gib=peak, codec_dtype=name)


def start(job: dict) -> dict:
    """When the first frame was there, in seconds since 1970."""
    frame_maker(load(job), job)(1)
    return dict(first_frame_at=time.time())


def check(job: dict) -> dict:
    """Nothing: the imports have worked."""
    return {}


TASKS = dict(measure=measure, start=start, check=check)


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    report = TASKS[job["task"]](job)
    versions = dict(python=sys.version.split()[0], torch=torch.__version__)
    versions["transformers"] = transformers.__version__
    versions["qwen-tts"] = importlib.metadata.version("qwen-tts")
    print(json.dumps(report | dict(versions=versions, device=job["device"])))


if __name__ == "__main__":
    main()
