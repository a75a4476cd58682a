"""Waves for codec training: what a shard holds, crops as a function of (seed, k)."""

import collections
import json

import numpy as np
import pytest
import soundfile

from data import waves
from data.loading import crops
from data.preparation import sources

RATE = 24_000
SECONDS = (0.5, 1.0, 2.3, 0.9, 1.7)


class Teacher:
    """Says of each frame how loud it is."""

    name, dim = "loudness", 3

    def __call__(self, wave):
        frames = -(-len(wave) // waves.FRAME)
        padded = np.pad(wave, (0, frames * waves.FRAME - len(wave)))
        level = np.abs(padded.reshape(frames, -1)).mean(axis=1)
        return np.repeat(level[:, None], self.dim, axis=1).astype(np.float16)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Five clips of noise, each with a level of its own, from two sources."""
    folder = tmp_path_factory.mktemp("recordings")
    rng, lines = np.random.default_rng(0), []
    for i, seconds in enumerate(SECONDS):
        wave = rng.standard_normal(int(seconds * RATE)).astype(np.float32) * 0.05
        soundfile.write(folder / f"{i}.wav", wave, RATE)
        line = dict(audio=f"{i}.wav", text="a b c", source=("one", "two")[i % 2])
        lines.append(json.dumps(line))
    (folder / "m.jsonl").write_text("\n".join(lines))
    return sources.Spec("manifest", str(folder / "m.jsonl"))


def made(manifest, out, **options):
    options = dict(teacher=Teacher(), shard_clips=2) | options
    waves.make(sources.open_source(manifest), out, say=lambda line: None, **options)
    return out


@pytest.fixture(scope="module")
def folder(manifest, tmp_path_factory):
    return made(manifest, tmp_path_factory.mktemp("waves") / "w")


def bytes_of(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def heard_as(teacher, level):
    """Whether the teacher's channels are the level, shifted and scaled."""
    slope, offset = np.polyfit(level, teacher[:, 0].astype(np.float32), 1)
    line = slope * level + offset
    return slope > 0 and np.allclose(teacher, line[:, None], atol=0.03)


def test_the_teacher_has_no_mean_and_one_deviation(folder):
    found = crops.Waves([folder])
    parts = [found.window(s, 0, n)["teacher"] for s, n in enumerate(found.lengths)]
    said = np.concatenate(parts).astype(np.float32)
    assert np.allclose(said.mean(axis=0), 0, atol=0.01)
    assert np.allclose(said.std(axis=0), 1, atol=0.05)


def test_a_clip_comes_back_whole(folder):
    found = crops.Waves([folder])
    assert len(found.clips) == 5 and found.teacher == "loudness"
    assert [str(i) + ".wav" for i in range(5)] == found.ids
    for clip, seconds in enumerate(SECONDS):
        frames = int(found.clips[clip]["frames"])
        row = found.clip(clip, frames + 2)
        samples = int(found.clips[clip]["samples"])
        assert samples == pytest.approx(seconds * RATE, abs=0.25 * RATE)  # trimmed
        assert np.abs(row["wave"][:samples]).max() > 0.05
        assert not row["wave"][samples:].any() and row["frames"] == frames
        level = np.abs(row["wave"].reshape(-1, waves.FRAME)).mean(axis=1)
        assert heard_as(row["teacher"][:frames], level[:frames])


def test_goes_on_after_a_stop(manifest, folder, tmp_path):
    class Stops(Teacher):
        left = 3

        def __call__(self, wave):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().__call__(wave)

    with pytest.raises(KeyboardInterrupt):
        made(manifest, tmp_path / "w", teacher=Stops())
    assert len(waves.shards(tmp_path / "w")) == 1
    made(manifest, tmp_path / "w")
    assert bytes_of(tmp_path / "w") == bytes_of(folder)


def test_other_settings_are_refused(manifest, folder):
    with pytest.raises(ValueError, match="begun with other settings"):
        made(manifest, folder, teacher=None)


def batches(found, **options):
    settings = dict(seed=1, steps=20, rows=4, frames=10) | options
    return crops.Crops(found, **settings)


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_a_batch_is_a_function_of_seed_and_number(folder):
    found = crops.Waves([folder])
    one, two = batches(found), batches(found)
    assert same(one[7], two[7]) and not same(one[7], one[8])
    assert not same(one[7], batches(found, seed=2)[7])
    read = list(crops.loader(one, 5))
    assert len(read) == 15
    assert all(same(batch, one[5 + i]) for i, batch in enumerate(read))


def test_hosts_share_a_batch(folder):
    found = crops.Waves([folder])
    whole = batches(found)[3]
    parts = [batches(found, host=host, hosts=2)[3] for host in range(2)]
    for name in whole:
        joined = np.concatenate([part[name] for part in parts])
        assert np.array_equal(joined, whole[name])


@pytest.mark.parametrize("frames", [10, 60])  # a shard has about 20, 40 and 21
def test_a_crop_keeps_wave_and_teacher_together(folder, frames):
    for number in range(8):
        batch = batches(crops.Waves([folder]), frames=frames)[number]
        level = np.abs(batch["wave"].reshape(4, frames, -1)).mean(axis=2)
        past = np.arange(frames)[None] >= batch["frames"][:, None]
        assert heard_as(batch["teacher"][~past], level[~past])
        assert not level[past].any() and (level[~past] > 0).mean() > 0.9
        assert past.any() == (frames == 60)


def test_crops_begin_everywhere(folder):
    """Also where the end of the clip is near: then the next clip follows."""
    found = crops.Waves([folder])
    seen = collections.Counter()
    window = found.window

    def noting(shard, start, frames):
        seen[shard, start] += 1
        return window(shard, start, frames)

    found.window = noting
    for number in range(100):
        batches(found, rows=8, frames=4, steps=100)[number]
    possible = {
        (shard, start)
        for shard, length in enumerate(found.lengths)
        for start in range(length - 3)
    }
    assert set(seen) == possible


def test_levels_vary_within_their_range(folder):
    found = crops.Waves([folder])
    plain = batches(found, rows=32)[0]["wave"]
    loud = batches(found, rows=32, gain_db=(-6.0, 3.0))[0]["wave"]
    gains = 20 * np.log10(np.abs(loud).max(axis=1) / np.abs(plain).max(axis=1))
    assert gains.min() > -6.01 and gains.max() < 3.01 and np.ptp(gains) > 5
    most = batches(found, rows=8, gain_db=(80.0, 80.0))[0]["wave"]
    assert np.abs(most).max() <= crops.MOST + 1e-6


def source_at(found, shard, start):
    first = found.clips["start"] <= start
    inside = first & (start < found.clips["start"] + found.clips["frames"])
    [clip] = np.flatnonzero(inside & (found.shard == shard))
    return found.sources[clip]


def test_pools_have_their_weights(folder):
    found = crops.Waves([folder])
    pools = (crops.Pool(3.0, "two"), crops.Pool(1.0))
    made = batches(found, pools=pools, rows=400, frames=1)
    names = []
    found.window = lambda shard, start, frames: (
        names.append(source_at(found, shard, start))
        or dict(wave=np.zeros(1, np.float32))
    )
    made[0]
    assert names.count("two") == pytest.approx(300, abs=30)


def test_refuses_a_pool_that_finds_nothing(folder):
    pools = (crops.Pool(1.0), crops.Pool(1.0, "two"))  # the first takes all
    with pytest.raises(ValueError, match="got the pool 'two', which finds none"):
        batches(crops.Waves([folder]), pools=pools)


def test_refuses_a_folder_without_waves(tmp_path):
    with pytest.raises(FileNotFoundError, match="`python -m data.waves` has filled"):
        crops.Waves([tmp_path])
