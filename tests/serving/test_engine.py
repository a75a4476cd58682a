"""Streams that share slots: each makes what it makes alone, whatever the others do."""

import jax
import numpy as np
import pytest
import voices

from qwen3tts_jax.generation import generate
from qwen3tts_jax.serving import engine as engines
from qwen3tts_jax.serving import session, stream

TEXTS = (
    "The ship left the harbour at dawn.",
    "Nobody on the pier waved it goodbye, and nobody wrote.",
    "Hello!",
    "A third one joins when another has left, and stays a little longer than it.",
    "And a last one.",
)
FRAMES = (9, 23, 5, 17, 12)
ALONE = dict(whole=False, schedule=(1, 2, 4))


@pytest.fixture
def engine(models):
    return engines.Engine(models.get("custom_voice"), slots=3, schedule=(1, 2, 4))


def requests(**changed) -> list[dict]:
    """Options of five streams; no two are alike."""
    return [
        dict(
            name=("speaker", "speaker, instruction")[i % 2],
            text=text,
            options=dict(
                seed=100 + i,
                max_new_tokens=frames + 1,
                temperature=0.7 + 0.1 * i,
                do_sample=i != 2,
                repetition_penalty=1.0 + 0.05 * i,
            )
            | changed,
        )
        for i, (text, frames) in enumerate(zip(TEXTS, FRAMES))
    ]


def open_all(models, engine, wanted: list[dict]) -> list[session.StreamingSession]:
    opened = []
    for request in wanted:
        one = models.open(request["name"], False, engine=engine, **request["options"])
        one.push_text(request["text"])
        one.end_text()
        opened.append(one)
    return opened


def assert_as_alone(models, request: dict, one, chunks) -> None:
    offline = models.offline(
        request["name"], False, text=request["text"], **request["options"]
    )
    voices.assert_same(chunks, one.codes, offline)


def read_in_turns(opened) -> list[list[np.ndarray]]:
    chunks = [[] for _ in opened]
    reading = list(range(len(opened)))
    while reading:
        for i in list(reading):
            chunk = opened[i].read()
            if chunk is None:
                reading.remove(i)
            else:
                chunks[i].append(chunk)
    return chunks


def test_streams_join_and_leave(models, engine):
    """Five streams in three slots; two wait until others have left."""
    wanted = requests()
    opened = open_all(models, engine, wanted[:2])
    chunks = [[one.read()] for one in opened]  # these have begun when others join
    opened += open_all(models, engine, wanted[2:])
    chunks += [[], [], []]
    for request, one, begun, rest in zip(wanted, opened, chunks, read_in_turns(opened)):
        assert_as_alone(models, request, one, [*begun, *rest])
    assert engine._state is None  # an idle engine holds no memory


def test_a_stream_that_waits_for_text_disturbs_nobody(models, engine):
    wanted = requests()[:3]
    late = wanted[1]
    slow = models.open(late["name"], False, engine=engine, **late["options"])
    slow.push_text(late["text"][:11])
    begun = slow.read()
    others = open_all(models, engine, [wanted[0], wanted[2]])
    chunks = read_in_turns(others)
    slow.push_text(late["text"][11:])
    slow.end_text()
    for request, one, mine in zip([wanted[0], wanted[2]], others, chunks):
        assert_as_alone(models, request, one, mine)
    assert_as_alone(models, late, slow, [begun, *slow])


def test_a_reader_that_stops_disturbs_nobody(models, engine, monkeypatch):
    """Its stream rests at the bound, and goes on when somebody reads again."""
    monkeypatch.setattr(stream, "MAX_UNREAD", 2)
    wanted = requests()
    opened = open_all(models, engine, wanted[:2])
    first = [opened[0].read()]
    while (chunk := opened[0].read()) is not None:
        first.append(chunk)
    assert_as_alone(models, wanted[0], opened[0], first)
    unread = opened[1]._stream
    assert len(unread.chunks) <= 3 and not unread.over  # one may have been on its way
    assert_as_alone(models, wanted[1], opened[1], list(opened[1]))


def test_a_session_that_is_closed_half_way_disturbs_nobody(models, engine):
    wanted = requests()
    opened = open_all(models, engine, wanted)
    first = opened[1].read()
    assert first is not None
    opened[0].close()
    opened[4].close()  # it was still waiting for a slot
    chunks = read_in_turns(opened[1:4])
    chunks[0].insert(0, first)
    for request, one, mine in zip(wanted[1:4], opened[1:4], chunks):
        assert_as_alone(models, request, one, mine)
    assert opened[0].stop_reason == opened[4].stop_reason == "closed"


def test_a_session_that_is_dropped_gives_its_slot_back(models):
    engine = engines.Engine(models.get("custom_voice"), slots=1)
    [dropped] = open_all(models, engine, requests()[1:2])
    dropped.read()
    del dropped
    wanted = requests()[:1]
    [after] = open_all(models, engine, wanted)
    assert_as_alone(models, wanted[0], after, list(after))


def test_no_free_slot_in_time(models):
    engine = engines.Engine(models.get("custom_voice"), slots=1)
    busy = models.open("speaker", False, engine=engine)
    busy.push_text("Well then, my friend")
    assert busy.read() is not None
    late = models.open("speaker", False, engine=engine, slot_timeout=0.2)
    late.push_text("Hello.")
    late.end_text()
    with pytest.raises(TimeoutError, match="no free slot within 0.2 s"):
        late.read()
    busy.end_text()
    assert len(list(busy)) > 1


def test_a_cache_that_grows_disturbs_nobody(models, monkeypatch):
    monkeypatch.setattr(generate, "CACHE_BUCKETS", (32, 40, 64))
    monkeypatch.setattr(generate, "GUARD_MIN_FRAMES", 4)
    # groups of one length: a program for each size of the cache
    engine = engines.Engine(models.get("custom_voice"), slots=3, schedule=(4,))
    wanted = requests()
    opened = open_all(models, engine, wanted)
    sizes = set()
    chunks = [[] for _ in opened]
    while not all(one._stream.over for one in opened):
        engine.step()
        sizes |= {engine._state.size} if engine._state is not None else set()
    chunks = read_in_turns(opened)
    assert len(sizes) > 1
    for request, one, mine in zip(wanted, opened, chunks):
        assert_as_alone(models, request, one, mine)


# -------------------------------------------------------------------- device errors


class Faulty:
    """Stands before the engine's program and fails when `when` says so."""

    def __init__(self, monkeypatch, when):
        self.run, self.when, self.failed = engines._run_group, when, 0
        monkeypatch.setattr(engines, "_run_group", self)

    def __call__(self, lm, decoder, state, codec, text, active, limit):
        if self.when(active):
            self.failed += 1
            jax.tree.map(lambda x: x.delete(), (state, codec))  # as donated
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return self.run(lm, decoder, state, codec, text, active, limit)


def test_after_a_device_error_all_streams_go_on(models, engine, monkeypatch):
    """Once, in the middle: they are rebuilt from their frames and end as they would."""
    calls = iter(range(1000))
    faulty = Faulty(monkeypatch, lambda active: next(calls) == 4)
    wanted = requests()
    opened = open_all(models, engine, wanted)
    chunks = read_in_turns(opened)
    assert faulty.failed == 1
    for request, one, mine in zip(wanted, opened, chunks):
        assert_as_alone(models, request, one, mine)


def test_an_error_of_one_stream_is_its_own(models, engine, monkeypatch):
    """Whenever it takes part in a group after its first, the device fails."""
    wanted = requests()[:3]
    opened = open_all(models, engine, wanted)
    first = [one.read() for one in opened]
    bad = opened[1]._stream

    def takes_part(active):
        return bad in engine._slots and active[engine._slots.index(bad)]

    faulty = Faulty(monkeypatch, takes_part)
    chunks = read_in_turns([opened[0], opened[2]])
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        list(opened[1])
    assert faulty.failed == 2  # with the others, then alone
    for i, mine in zip((0, 2), chunks):
        assert_as_alone(models, wanted[i], opened[i], [first[i], *mine])


def test_a_prompt_that_cannot_be_read_is_its_streams_error(models, engine, monkeypatch):
    wanted = requests()[:3]
    read, calls = generate.read_prompt, iter(range(3))
    expected = [models.offline("speaker", False, text=TEXTS[0], **wanted[0]["options"])]
    expected += [
        models.offline(wanted[1]["name"], False, text=TEXTS[1], **wanted[1]["options"])
    ]

    def fails(*args, **options):
        if next(calls) == 2:
            raise jax.errors.JaxRuntimeError("INTERNAL: no")
        return read(*args, **options)

    monkeypatch.setattr(generate, "read_prompt", fails)
    opened = open_all(models, engine, wanted)
    chunks = read_in_turns(opened[:2])
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        opened[2].read()
    for one, mine, offline in zip(opened, chunks, expected):
        voices.assert_same(mine, one.codes, offline)


# ---------------------------------------------------------------------- compilation


def test_nothing_is_compiled_in_service(models, monkeypatch, compiled):
    """After `warmup`, 50 requests: both buckets, every voice, one slot and three."""
    monkeypatch.setattr(generate, "CACHE_BUCKETS", (256, 320))
    jax.clear_caches()  # other tests have compiled these programs
    for name in ("speaker", "x-vector", "clone"):
        models.request(name)
    custom, base = models.get("custom_voice"), models.get("base")
    for slots in (1, 3):
        custom.warmup(slots=slots, schedule=(1, 4), positions=320)
    base.warmup(schedule=(1, 4), positions=320, reference_seconds=6)
    rng = np.random.default_rng(0)
    shared = engines.Engine(custom, slots=3, schedule=(1, 4))
    before = len(compiled())
    opened = []
    for i in range(50):
        name = ("speaker", "speaker, instruction", "clone", "x-vector")[i % 4]
        own = voices.VOICES[name][0] == "base" or i % 3 == 0
        engine = dict(schedule=(1, 4)) if own else dict(engine=shared)
        frames = int(rng.integers(2, 30)) + (290 if i == 24 else 0)
        one = models.open(name, i % 5 == 0, seed=i, max_new_tokens=frames + 1, **engine)
        one.push_text(" ".join(["word"] * int(rng.integers(1, 60))))
        one.end_text()
        opened.append(one)
        if i % 7 == 6:
            read_in_turns(opened)
            opened = []
    read_in_turns(opened)
    wave = rng.standard_normal(24000 * 4).astype(np.float32)
    base.voice(ref_audio=(wave, 24000), ref_text="Well.")
    assert compiled()[before:] == []
