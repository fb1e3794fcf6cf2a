"""Requests are counted in heaps, failures at once."""

from types import SimpleNamespace

from controlplane.events import EventBus, InferenceFinished
from controlplane.gateway.grpc_relay.tally import Tally
from controlplane.gateway.v2 import Outcome
from tests.relay import Store
from tests.waiting import eventually


def outcomes():
    bus, heard = EventBus(), []
    bus.subscribe(InferenceFinished, heard.append)
    services = SimpleNamespace(bus=bus)
    servable = Store().servable("org/0")
    return heard, lambda **more: Outcome(services, servable, "v2_grpc", **more)


async def test_what_went_well_is_counted_a_moment_later_with_the_time_it_took():
    heard, outcome = outcomes()
    tally = Tally()
    well = [outcome(), outcome()]
    for each in well:
        tally.add(each)
    assert heard == []
    await eventually(lambda: len(heard) == 2)
    assert [e.duration_seconds for e in heard] == [each.ended - each.started for each in well]
    tally.add(outcome())
    await eventually(lambda: len(heard) == 3)


async def test_a_failure_and_the_end_of_the_service_do_not_wait():
    heard, outcome = outcomes()
    tally = Tally()
    tally.add(outcome(error_code="INVALID_INPUT"))
    assert [e.error_code for e in heard] == ["INVALID_INPUT"]
    tally.add(outcome())
    tally.publish()
    assert [e.status for e in heard] == ["error", "success"]
    tally.publish()
    assert len(heard) == 2
