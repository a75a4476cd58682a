"""The shards of a Job, made by an Apache Beam pipeline (extra beam).

The pipeline's elements are the numbers of the missing shards; each worker opens the job
and makes whole shards by the function that `prepare` runs, so that both write the same
bytes.  Without a runner in the options it runs here, in this process.  Elsewhere the
workers must have this checkout and see the recordings, the checkpoint and the corpus
directory under the same paths (a shared disk).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options import pipeline_options

from data.preparation import shards

LOCAL = "FnApiRunner"  # DirectRunner would fetch a program to run pipelines


class MakeShard(beam.DoFn):
    """Shard number -> the same number, when the shard is on the disk."""

    def __init__(self, job: shards.Job, settings: dict, out: Path):
        self.job, self.settings, self.out = job, settings, out

    def setup(self) -> None:
        """Raises: ValueError on a worker that sees another source, codec or model."""
        self.preparer = shards.Preparer(self.job)
        here = self.preparer.settings()
        if here != self.settings:
            other = [key for key in here if here[key] != self.settings.get(key)]
            raise ValueError(
                f"a worker has another {', '.join(other)} than the program that "
                "started it; let all see the same files"
            )

    def process(self, number: int) -> Iterator[int]:
        # a runner may give work out twice
        if not shards.marker_path(self.out, number).exists():
            self.preparer.write(number, self.out)
        yield number


def run(
    job: shards.Job,
    settings: dict,
    missing: Sequence[int],
    out: Path,
    options: Sequence[str] = (),
) -> None:
    """Make some shards.

    Args:
        settings: of the job, `Preparer.settings`.
        options: of the pipeline, as ["--runner=FlinkRunner"].
    """
    runner = any(option.startswith("--runner") for option in options)
    options = pipeline_options.PipelineOptions(
        [*options, *[f"--runner={LOCAL}"] * (not runner)]
    )
    with beam.Pipeline(options=options) as pipeline:
        numbers = pipeline | beam.Create(list(missing))
        # one bundle for each shard, on any worker
        spread = numbers | beam.Reshuffle()
        spread | beam.ParDo(MakeShard(job, settings, out))
