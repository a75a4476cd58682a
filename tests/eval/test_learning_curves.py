"""Curves of runs: points over steps and seconds, from logs and from figures."""

import json

import pytest

from configs import build_codec
from eval import learning_curves
from qwen3tts_jax.training import metrics_writer as log


@pytest.fixture
def run(tmp_path):
    """20 steps of half a second, then 20 of a whole; a figure at 20 and at 40."""
    folder = tmp_path / "mel"
    written = log.Log(folder)
    for step in range(10, 50, 10):
        spent = 0.5 if step <= 20 else 1.0
        written.write(step, dict(loss=1.0 / step, seconds_per_step=spent, mfu=None))
    written.close()
    lines = [dict(step=20, stoi=0.5), dict(step=40, stoi=0.75)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / build_codec.FIGURES).write_text(text)
    return folder


def test_points_have_steps_seconds_and_values(run):
    found = learning_curves.read(run)
    assert found["loss"][:2] == [[10, 5.0, 0.1], [20, 10.0, 0.05]]
    assert found["loss"][-1] == [40, 30.0, 0.025]
    assert found["stoi"] == [[20, 10.0, 0.5], [40, 30.0, 0.75]]


def test_long_curves_are_thinned_and_keep_their_end():
    points = [[step, 0.0, 0.0] for step in range(1001)]
    kept = learning_curves.thin(points)
    assert len(kept) <= learning_curves.POINTS and kept[-1] == points[-1]
    assert learning_curves.thin(points[:3]) == points[:3]


def test_both_files_are_written(run, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "docs" / "curves"
    learning_curves.main(["--runs", str(run), "--out", str(out)])
    assert json.loads(out.with_suffix(".json").read_text())["mel"]["stoi"]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_log_is_told_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="which has no log.jsonl; give the --workdir"):
        learning_curves.main(["--runs", str(tmp_path), "--out", str(tmp_path / "c")])
