"""What a load would do: a pure function, held against what the policy promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.lifecycle.plan import Held, Need, Snapshot, Verdict, plan
from controlplane.lifecycle.state import ModelState


def held(name: str, mb: float = 100.0, idle: float = 10.0, **more: object) -> Held:
    traits = {"in_use": False, "stays": False, "state": ModelState.LOADED, "version": "v1"} | more
    number = int(str(traits["version"])[1:])
    return Held(
        model_id=f"org/{name}",
        key=(f"org--{name}", number),
        memory_mb=mb,
        idle_seconds=idle,
        **traits,  # type: ignore[arg-type]
    )


def need(name: str, mb: float = 100.0, version: int = 1) -> Need:
    return Need(
        model_id=f"org/{name}",
        version=f"v{version}",
        key=(f"org--{name}", version),
        need_mb=mb,
        source="measured",
    )


def snapshot(*models: Held, budget: float = 250.0, slots: int = 10) -> Snapshot:
    return Snapshot(budget_mb=budget, max_models=slots, held=models)


def test_what_is_loaded_needs_nothing() -> None:
    (step,) = plan(snapshot(held("a")), [need("a")]).steps
    assert (step.verdict, step.leaving, step.used_mb_after) == (Verdict.LOADED, (), 100.0)


def test_what_has_room_fits() -> None:
    found = plan(snapshot(held("a")), [need("b")])
    assert [step.verdict for step in found.steps] == [Verdict.FITS]
    assert (found.used_mb_before, found.used_mb_after, found.fits) == (100.0, 200.0, True)


def test_the_least_recently_used_leaves_and_it_is_said_why() -> None:
    found = plan(snapshot(held("a", idle=5), held("b", idle=90)), [need("c")])
    (step,) = found.steps
    assert step.verdict is Verdict.EVICTS
    assert [(m.model_id, m.reason) for m in step.leaving] == [
        ("org/b", "least recently used, idle for 90 s")
    ]
    assert step.used_mb_after == 200.0


def test_busy_models_are_waited_for() -> None:
    (step,) = plan(snapshot(held("a", in_use=True), held("b", in_use=True)), [need("c")]).steps
    assert step.verdict is Verdict.WAITS
    assert step.reason == f"until {step.leaving[0].model_id} has left"


def test_memory_that_is_coming_back_is_waited_for() -> None:
    leaving = held("a", 200.0, state=ModelState.UNLOADING)
    (step,) = plan(snapshot(leaving), [need("c")]).steps
    assert (step.verdict, step.reason) == (Verdict.WAITS, "until org/a has left")
    assert step.used_mb_after == 100.0


def test_another_version_leaves_first() -> None:
    (step,) = plan(snapshot(held("a")), [need("a", version=2)]).steps
    assert step.verdict is Verdict.EVICTS
    assert step.leaving[0].reason == "another version of the model"


def test_models_that_stay_make_it_impossible() -> None:
    found = plan(snapshot(held("a", 200.0, stays=True)), [need("b")])
    assert not found.fits
    assert found.steps[0].reason == "1 models that are to stay hold 200 MB"


def test_what_is_larger_than_the_budget_never_fits() -> None:
    (step,) = plan(snapshot(), [need("huge", 251.0)]).steps
    assert step.verdict is Verdict.NEVER
    assert "whole budget" in step.reason


def test_models_of_a_plan_do_not_evict_one_another() -> None:
    found = plan(snapshot(held("a")), [need("a"), need("b"), need("c")])
    verdicts = [step.verdict for step in found.steps]
    assert verdicts == [Verdict.LOADED, Verdict.FITS, Verdict.NEVER]
    assert found.steps[2].reason == "not together with the other models of this plan"


names = st.sampled_from("abcdefgh")
states = st.sampled_from([ModelState.LOADED, ModelState.LOADING, ModelState.UNLOADING])
models = st.lists(
    st.builds(
        held,
        names,
        st.integers(1, 120).map(float),
        st.integers(0, 100).map(float),
        in_use=st.booleans(),
        stays=st.booleans(),
        state=states,
    ),
    max_size=6,
    unique_by=lambda m: m.key,
)
needs = st.lists(
    st.builds(need, names, st.integers(1, 200).map(float)),
    min_size=1,
    max_size=5,
    unique_by=lambda n: n.key,
)


@given(models=models, needs=needs, slots=st.integers(1, 6))
def test_a_plan_that_fits_stays_within_the_limits_and_moves_nobody_who_stays(
    models: list[Held], needs: list[Need], slots: int
) -> None:
    before = snapshot(*models, budget=max(250.0, sum(m.memory_mb for m in models)), slots=slots)
    found = plan(before, needs)
    stay = {m.model_id for m in models if m.stays} - {n.model_id for n in needs}
    for step in found.steps:
        assert not stay & {m.model_id for m in step.leaving}
        moved = step.verdict in {Verdict.FITS, Verdict.EVICTS, Verdict.WAITS}
        if moved:
            assert step.used_mb_after <= before.budget_mb
        else:
            assert step.used_mb_after == step.used_mb_before
        if step.verdict is Verdict.FITS:
            assert not step.leaving
    assert found.fits == all(step.verdict is not Verdict.NEVER for step in found.steps)
