"""The command that fills the compilation cache."""

import pathlib

import jax
import pytest

from qwen3tts_jax.serving import warmup


def test_it_leaves_programs_in_the_cache(checkpoint, capsys):
    """Most are there already: other tests have compiled the same."""
    path = checkpoint("voice_design", "1.7B")
    warmup.main(["--model", str(path), "--positions", "256"])
    assert capsys.readouterr().out.startswith("ready in ")
    assert list(pathlib.Path(jax.config.jax_compilation_cache_dir).iterdir())


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
