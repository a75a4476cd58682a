"""The Beam pipeline writes what the direct run writes."""

import json
import pathlib

import pytest

pytest.importorskip("apache_beam", reason="apache-beam is optional (extra beam)")

from data import prepare
from data.preparation import beam as prepare_beam
from data.preparation import shards, sources

CLIPS = pathlib.Path(__file__).parents[2] / "recordings/clips/it"


def contents(out: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def job(checkpoint) -> shards.Job:
    return shards.Job(
        sources.Spec("folder", str(CLIPS)),
        str(checkpoint("base") / "speech_tokenizer"),
        shard_clips=3,
        batch_frames=64,
    )


def test_both_write_the_same_bytes(job, tmp_path):
    direct, beam = tmp_path / "direct", tmp_path / "beam"
    prepare.prepare(job, direct)
    report = prepare.prepare(job, beam, beam="")
    assert (report["shards_done"], report["kept"]) == (3, 8)
    assert contents(beam) == contents(direct)
    assert len(contents(beam)) == 3 * 2 + 3  # report, settings, lock


def test_a_pipeline_goes_on_where_it_was(job, tmp_path):
    prepare.prepare(job, tmp_path, beam="")
    before = contents(tmp_path)
    for path in tmp_path.glob("shard-00001*"):
        path.unlink()
    kept = (tmp_path / "shard-00000.json").stat().st_mtime_ns
    prepare.prepare(job, tmp_path, beam="--runner=BundleBasedDirectRunner")
    assert contents(tmp_path) == before
    assert (tmp_path / "shard-00000.json").stat().st_mtime_ns == kept


def test_a_worker_that_sees_another_source_refuses(job, tmp_path):
    here = json.loads(json.dumps(shards.Preparer(job).settings()))
    worker = prepare_beam.MakeShard(job, here | dict(source_clips=9), tmp_path)
    with pytest.raises(ValueError, match="another source_clips than"):
        worker.setup()
