"""What differs between Triton and what we know; who used a model without us."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.lifecycle.elsewhere import Probes, Seen, answered, used_elsewhere
from controlplane.lifecycle.reconcile import differences
from controlplane.lifecycle.state import HOLDING_MEMORY, ModelState
from controlplane.triton.client import IndexEntry

LOADED = ModelState.LOADED
NAMES = ("org--a", "org--b", "foreign")
OURS = frozenset({"org--a", "org--b"})

keys = st.tuples(st.sampled_from(NAMES), st.integers(1, 3))
index_states = st.sampled_from(["READY", "LOADING", "UNLOADING", "UNAVAILABLE", ""])


def entries(states: dict[tuple[str, int], str]) -> list[IndexEntry]:
    return [IndexEntry(name, version, state, "") for (name, version), state in states.items()]


def test_nothing_differs() -> None:
    index = [*entries({("org--a", 1): "READY"}), IndexEntry("org--b", None, "", "")]
    assert differences(index, {("org--a", 1): LOADED}, OURS) == ([], [])


def test_a_model_that_is_not_ours_is_no_difference() -> None:
    assert differences(entries({("foreign", 1): "READY"}), {}, OURS) == ([], [])


def test_another_version_of_ours_is_a_stray() -> None:
    index = entries({("org--a", 1): "UNAVAILABLE", ("org--a", 2): "READY"})
    found = differences(index, {("org--a", 1): LOADED}, OURS)
    assert found == ([("org--a", 2)], [("org--a", 1)])


@given(
    st.dictionaries(keys, index_states),
    st.dictionaries(keys.filter(lambda key: key[0] in OURS), st.sampled_from(ModelState)),
)
def test_differences_are_exactly_what_one_side_has_and_the_other_has_not(
    index: dict[tuple[str, int], str], states: dict[tuple[str, int], ModelState]
) -> None:
    strays, lost = differences(entries(index), states, OURS)
    for key, state in index.items():
        known = states.get(key) in HOLDING_MEMORY
        assert (key in strays) == (state == "READY" and key[0] in OURS and not known)
    for key, known_state in states.items():
        assert (key in lost) == (known_state is LOADED and index.get(key) != "READY")
    assert not set(strays) & set(lost)


def test_counting_from_tritons_statistics() -> None:
    assert answered({"inference_stats": {"success": {"count": "12", "ns": "5"}}}) == 12
    assert answered({"inference_stats": {"success": {}}}) == answered({}) == 0


def test_only_a_surplus_of_the_same_load_without_requests_of_ours_counts() -> None:
    before = Seen(load=1.0, leased=5, surplus=5)
    assert used_elsewhere(before, Seen(1.0, 5, 6))
    assert not used_elsewhere(before, Seen(1.0, 5, 5))
    assert not used_elsewhere(before, Seen(1.0, 6, 6))  # ours
    assert not used_elsewhere(before, Seen(2.0, 5, 9))  # counters began anew
    assert not used_elsewhere(None, Seen(1.0, 5, 6))


def test_test_inferences_under_way_are_known() -> None:
    probes = Probes()
    key = ("org--a", 1)
    assert probes.count(key) == 0
    probes.begin(key)
    assert probes.count(key) is None
    probes.begin(key)
    probes.end(key)
    assert probes.count(key) is None
    probes.end(key)
    assert probes.count(key) == 2
