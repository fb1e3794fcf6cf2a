"""An S3 server that fails, lies and changes its mind: a real one behind a proxy that spoils it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from controlplane.errors import ArtifactNotAccessible, ChecksumMismatch, DownloadFailed
from controlplane.registry.sources import HubLimits
from tests.integration.test_sources_s3 import FILES, QUICK, Fetcher, endpoint, fetched, put, s3
from tests.s3_faults import Fault, FaultyS3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["endpoint", "fetched", "put", "s3"]

WEIGHTS = os.urandom(2_000_000)
MODEL = FILES | {"model.safetensors": WEIGHTS}
NAME = "model.safetensors"
IMPATIENT = HubLimits(answer=0.5, resolve=5.0, attempts=3, first_pause=0.01, longest_pause=0.05)


@pytest.fixture
def faulty(endpoint: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with FaultyS3(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def model(put: Callable[[dict[str, bytes]], None], faulty: FaultyS3) -> FaultyS3:
    put({f"m/{name}": content for name, content in MODEL.items()})
    return faulty


def weights(fetched: Fetcher) -> bytes:
    return (fetched.destination / NAME).read_bytes()


def test_a_truncated_object_goes_on_where_it_broke(model: FaultyS3, fetched: Fetcher) -> None:
    model.faults[NAME] = [Fault("truncate", after=500_000)]
    fetched("s3://models/m")
    assert weights(fetched) == WEIGHTS
    first, second = model.asked(NAME)
    assert first is None
    assert second is not None
    assert second.startswith("bytes=")
    assert int(second[6:].rstrip("-")) > 0


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("path", ["models", NAME])
def test_three_failures_and_then_an_answer(
    model: FaultyS3, fetched: Fetcher, status: int, path: str
) -> None:
    model.faults[path] = [Fault("status", status=status)] * 3
    patient = HubLimits(answer=5, resolve=10, attempts=4, first_pause=0.01, longest_pause=0.05)
    fetched("s3://models/m", limits=patient)
    assert weights(fetched) == WEIGHTS
    assert len(model.asked(path)) == 4


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("path", ["models", NAME])
def test_refusals_are_not_repeated(
    model: FaultyS3, fetched: Fetcher, status: int, path: str
) -> None:
    model.faults[path] = [Fault("status", status=status)]
    with pytest.raises(ArtifactNotAccessible):
        fetched("s3://models/m")
    assert len(model.asked(path)) == 1
    assert not fetched.destination.exists()


@pytest.mark.parametrize("kind", ["drop", "stall"])
def test_silence_and_broken_connections_are_tried_again(
    model: FaultyS3, fetched: Fetcher, kind: str
) -> None:
    model.faults[NAME] = [Fault(kind, after=100_000)]
    began = time.monotonic()
    fetched("s3://models/m", limits=IMPATIENT)
    assert weights(fetched) == WEIGHTS
    assert time.monotonic() - began < 10  # not a socket's own patience


def test_a_server_that_stays_silent_is_given_up(model: FaultyS3, fetched: Fetcher) -> None:
    model.faults[NAME] = [Fault("stall", after=0)] * 9
    with pytest.raises(DownloadFailed, match="Try again later"):
        fetched("s3://models/m", limits=IMPATIENT)
    assert len(model.asked(NAME)) == IMPATIENT.attempts


def test_wrong_bytes_are_found_by_the_md5_in_the_etag(model: FaultyS3, fetched: Fetcher) -> None:
    model.faults[NAME] = [Fault("corrupt")]
    with pytest.raises(ChecksumMismatch, match="md5"):
        fetched("s3://models/m")
    fetched("s3://models/m")  # nothing of it was kept
    assert weights(fetched) == WEIGHTS


def test_another_etag_than_was_listed_is_a_change(model: FaultyS3, fetched: Fetcher) -> None:
    model.faults[NAME] = [Fault("etag")]
    with pytest.raises(DownloadFailed, match="changed while"):
        fetched("s3://models/m")
    assert not fetched.destination.exists()


def test_a_change_between_listing_and_reading_is_found_without_if_match(
    model: FaultyS3, fetched: Fetcher, put: Callable[[dict[str, bytes]], None]
) -> None:
    model.faults[NAME] = [Fault("do")]  # also takes If-Match away, as some servers ignore it
    model.actions[NAME] = lambda: put({f"m/{NAME}": WEIGHTS[::-1]})
    with pytest.raises(DownloadFailed, match="changed while"):
        fetched("s3://models/m")
    assert not fetched.destination.exists()
    fetched("s3://models/m")
    assert weights(fetched) == WEIGHTS[::-1]


def test_a_server_without_ranges_starts_over(model: FaultyS3, fetched: Fetcher) -> None:
    model.faults[NAME] = [Fault("truncate", after=500_000), Fault("no_range")]
    fetched("s3://models/m")
    assert weights(fetched) == WEIGHTS


def test_more_bytes_than_were_listed_are_not_taken(model: FaultyS3, fetched: Fetcher) -> None:
    model.faults[NAME] = [Fault("longer")] * 9
    with pytest.raises(DownloadFailed, match="of 2000000 bytes"):
        fetched("s3://models/m", limits=QUICK)
    model.faults[NAME] = [Fault("longer")]
    fetched("s3://models/m")
    assert weights(fetched) == WEIGHTS
