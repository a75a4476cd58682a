"""What this package exports, loaded by the official one.  Needs it: `-m oracle`."""

import subprocess

import inputs
import make
import numpy as np
import parity
import pytest

from qwen3tts_jax.checkpoints import weights

pytestmark = pytest.mark.oracle
BASE, CUSTOM = parity.FRESH[:2]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("spec", [BASE, CUSTOM], ids=lambda spec: spec.name)
def test_official_package_speaks_from_an_export(
    goldens, tmp_path, monkeypatch, spec, dtype
):
    """Whole in float32, in shards in bfloat16: the same codes, to the last one."""
    golden = goldens(spec)
    if dtype:
        monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 3_000_000)
    golden.model.save_pretrained(tmp_path / "export", dtype=dtype)
    assert (tmp_path / "export" / weights.INDEX).exists() == bool(dtype)
    out = tmp_path / "out.safetensors"
    make.run(
        parity.official_python(),
        "dump_official.py",
        tmp_path / "export",
        *("--seed", spec.seed, "--out", out, "--only", "generation"),
    )
    arrays, _ = parity.read(out)
    codes = [key for key in arrays if key.endswith(("/codes", "/lengths"))]
    assert len(codes) == 2 * 2 * len(golden.cases)
    for key in arrays:  # the same weights, the same code: the same numbers
        np.testing.assert_array_equal(arrays[key], golden.arrays[key], key)


RUN_TOKENIZER = """
import sys

sys.path.insert(0, sys.argv[1])
import numpy as np
import official
import qwen_tts

tokenizer = qwen_tts.Qwen3TTSTokenizer.from_pretrained(sys.argv[2])
codes = tokenizer.encode(np.load(sys.argv[3]), sr=24000).audio_codes[0]
waves, rate = tokenizer.decode([{"audio_codes": codes}])
np.savez(sys.argv[4], codes=codes.numpy(), wave=waves[0], rate=rate)
"""


def test_official_tokenizer_reads_an_export(goldens, tmp_path):
    tokenizer = goldens(BASE).model.speech_tokenizer
    tokenizer.save_pretrained(tmp_path / "export")
    wave = inputs.voice(30_000, parity.FRESH_SEED)
    np.save(tmp_path / "wave.npy", wave)
    done = subprocess.run(
        [
            *(parity.official_python(), "-c", RUN_TOKENIZER, str(parity.GOLDEN)),
            *(str(tmp_path / name) for name in ("export", "wave.npy", "out.npz")),
        ],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-4000:]
    theirs = np.load(tmp_path / "out.npz")
    (codes,) = tokenizer.encode(wave, sr=inputs.SAMPLE_RATE).audio_codes
    np.testing.assert_array_equal(codes, theirs["codes"])
    (decoded,), rate = tokenizer.decode([codes])
    assert rate == theirs["rate"]
    parity.assert_close("wave", decoded, theirs["wave"], parity.WAVE_CLOSE)
