"""The loader's speed is measured from shards to batches."""

import os

from eval.benchmarks import loader


def test_the_command_measures_what_it_says(tokenizer_dir, capsys):
    cores = os.sched_getaffinity(0)
    options = (
        "--shards 2 --shard_rows 24 --rows 2 --length 1024 --batches 3 --profile 5"
    )
    for voice, workers in (("x_vector", "0"), ("mel", "0")):
        (found,) = loader.main(
            [
                *options.split(),
                *("--voice", voice, "--workers", workers),
                *("--text_tokenizer", str(tokenizer_dir)),
            ]
        )
        assert found["frames_per_example"] == 125
        assert 0.5 < found["filled"] <= 1
        speed = 1e6 * 125 / found["microseconds_per_example"]
        assert abs(found["frames_per_second_of_a_core"] / speed - 1) < 0.01
    assert "function calls" in capsys.readouterr().out
    assert os.sched_getaffinity(0) == cores
