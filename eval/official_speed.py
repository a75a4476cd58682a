"""The official package's side of `eval.speed`: one task, one line of JSON on stdout.

Run by `python -m eval.speed --against official` with the Python of an environment of
its own that has qwen-tts:

    pip install torch transformers==4.57.3 accelerate einops librosa onnxruntime
    pip install soundfile && pip install --no-deps qwen-tts==0.1.1 torchaudio sox

What torchaudio and sox serve (the 25 Hz tokenizer's speaker front end) is not used
here, and either may fail to import, so both may be empty: torchaudio keeps only its
pure Python parts, whose import needs no compiled library.
"""

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

transformers.logging.set_verbosity_error()

FEW_FRAMES = 2  # the short run, whose time is taken off the long one's
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
    tts = qwen_tts.Qwen3TTSModel.from_pretrained(job["model"], dtype=dtype, **place)
    eos = tts.model.config.talker_config.codec_eos_token_id
    tts.model.talker.codec_head.weight.data[eos] = 0
    return tts


def frame_maker(tts, job: dict):
    """The public method as count -> codes [count, 16], without the codec."""
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


def time_codec(codec, codes: np.ndarray, wave: np.ndarray, rate: int, device) -> dict:
    """Seconds of decoding and encoding, best of two after one unmeasured call each."""
    calls = dict(
        seconds_decode_10s=lambda: codec.decode([dict(audio_codes=codes)]),
        seconds_encode_10s=lambda: codec.encode(wave, sr=rate),
    )
    for call in calls.values():
        call()
    return {
        key: min(timed(device, call)[0] for _ in range(2))
        for key, call in calls.items()
    }


def peak_memory(device: str) -> float:
    """GiB: of the device where it is a GPU, else of this process."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(job: dict) -> dict:
    """Everything but the start; see `eval.speed.measure`."""
    device, frames = job["device"], job["frames"]
    load_seconds, tts = timed(device, load, job)
    make = frame_maker(tts, job)
    first, _ = timed(device, make, FEW_FRAMES)
    few = min(timed(device, make, FEW_FRAMES)[0] for _ in range(3))
    predictor = tts.model.talker.code_predictor
    watch = predictor.generate = Stopwatch(predictor.generate, device)
    many, codes = timed(device, make, frames)
    codec = tts.model.speech_tokenizer
    codec.decode([dict(audio_codes=codes)])
    peak = peak_memory(device)
    frame = (many - few) / (frames - FEW_FRAMES)
    rng = np.random.default_rng(0)
    return dict(
        seconds_load=load_seconds,
        seconds_compile=first - few,
        seconds_prefill=few - FEW_FRAMES * frame,
        seconds_per_frame=frame,
        seconds_per_frame_predictor=watch.seconds / frames,
        seconds_per_frame_talker=frame - watch.seconds / frames,
        peak_memory_gib=peak,
        codec_dtype=str(codec.model.dtype).removeprefix("torch."),
        codes=codes.tolist(),
        **time_codec(
            codec,
            rng.integers(0, job["codebook"], (job["codec_frames"], codes.shape[1])),
            rng.normal(0, 0.1, job["wave_samples"]).astype(np.float32),
            job["wave_rate"],
            device,
        ),
    )


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
