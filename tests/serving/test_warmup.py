"""The command that fills the compilation cache."""

import pytest

from qwen3tts_jax import Qwen3TTSModel
from qwen3tts_jax.serving import warmup


def test_after_it_nothing_is_compiled(checkpoint, capsys, compiled):
    path = checkpoint("voice_design", "1.7B")
    warmup.main(["--model", str(path), "--positions", "256"])
    assert capsys.readouterr().out.startswith("ready in ")
    tts, before = Qwen3TTSModel.from_pretrained(path), len(compiled())
    list(tts.stream_voice_design("Hello.", "Calm.", max_new_tokens=20, seed=1))
    assert compiled()[before:] == []


def test_one_line_for_a_mistake(capsys):
    with pytest.raises(SystemExit):
        warmup.main(["--model", "/nowhere/at/all"])
    assert "/nowhere/at/all" in capsys.readouterr().err.splitlines()[-1]


def test_an_engine_with_streams_is_not_warmed_up(models):
    opened = models.open("speaker", False)
    opened.push_text("Well then, my friend")
    opened.read()
    with pytest.raises(ValueError, match="before the first"):
        opened.engine.warmup()
    opened.close()
