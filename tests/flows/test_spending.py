"""A budget holds over all starts of a run, whoever ended them."""

from __future__ import annotations

import threading

import pytest

from flows.configuration import resolve
from flows.models import find_policy
from flows.spending import BudgetConfig, budget_of, spent
from flows.stage_runner import RunContext
from flows.tracked_run import make_run_id
from lineage.workspace import Workspace
from stages.errors import ConfigError


@pytest.fixture
def context(tmp_path):
    return RunContext(Workspace(tmp_path), "small-refresh-1")


def budget(context, **limits):
    return budget_of(context, BudgetConfig(**limits))


def test_what_was_spent_is_still_spent_after_a_restart(context):
    first = budget(context, max_tokens=100)
    assert first.exhausted() == ""
    first.charge(60, 0.5)
    first.charge(39, 0.25)
    assert first.exhausted() == ""
    again = budget(context, max_tokens=100)
    assert (again.tokens, again.cost) == (99, 0.75)
    assert again.exhausted() == ""
    again.charge(1, 0.0)
    assert again.exhausted() == "100 tokens are used and max_tokens is 100"
    assert budget(context, max_tokens=100).exhausted()


def test_raising_the_limit_lets_the_run_go_on(context):
    budget(context, max_cost=1.0).charge(10, 1.5)
    assert budget(context, max_cost=1.0).exhausted() == "1.5000 is spent and max_cost is 1.0000"
    assert budget(context, max_cost=2.0).exhausted() == ""
    assert budget(context).exhausted() == "", "without a limit none is reached"


def test_every_run_has_its_own(context):
    budget(context).charge(10, 1.0)
    other = RunContext(context.workspace, "small-refresh-2")
    assert budget(other).tokens == 0


def test_two_budgets_of_one_run_at_once_lose_no_charge(context):
    """As generation and a judge, or two processes that wait for each other, may have them."""
    one, two = budget(context), budget(context)
    one.charge(1, 0.0)
    two.charge(2, 0.0)
    assert budget(context).tokens == 3


def test_charges_of_many_threads_are_all_counted(context):
    shared = budget(context)
    threads = [
        threading.Thread(target=lambda: [shared.charge(1, 0.5) for _ in range(50)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (shared.tokens, shared.cost) == (400, 200.0)
    again = budget(context)
    assert (again.tokens, again.cost) == (400, 200.0)


def test_a_line_cut_short_costs_that_charge_only(context):
    first = budget(context)
    for tokens in (1, 10, 100):
        first.charge(tokens, 0.0)
    whole = first.path.read_bytes()
    kept = whole.rindex(b"[")
    for end in range(kept, len(whole)):
        first.path.write_bytes(whole[:end])
        after = budget(context)
        assert after.tokens == 11, f"cut after {end} bytes"
        after.charge(1000, 0.0)
        assert budget(context).tokens == 1011


@pytest.mark.parametrize("junk", [b"\0\0\0", b"\xff", b"null", b"{}", b"[1]", b'["a", 1]', b"7"])
def test_junk_of_a_power_cut_counts_nothing(context, junk):
    first = budget(context)
    first.charge(5, 0.5)
    first.path.write_bytes(first.path.read_bytes() + b"\n" + junk)
    assert sum(tokens for tokens, _ in spent(first.path)) == 5
    budget(context).charge(2, 0.0)
    assert budget(context).tokens == 7


def test_nothing_is_spent_before_the_first_request(context):
    assert spent(budget(context).path) == []


def test_a_limit_is_no_part_of_what_names_a_run():
    policy = find_policy("bundled")

    def run_id(**limits):
        config = resolve({"name": "small", "budget": limits}, "test")
        return make_run_id("refresh", config, policy, {}, 0)

    assert run_id(max_tokens=5) == run_id(max_tokens=6) == run_id()


def test_a_limit_of_cost_needs_prices(monkeypatch):
    def configured(prices, judge_prices=None, **endpoint):
        served = {"endpoint": {"base_urls": ["http://127.0.0.1:9/v1"], **endpoint}}
        generator = {"engine": "openai", "model": "big", "prices": prices, **served}
        judge = {"kind": "judge", "name": "j", "model": "m", "rubric": "helpfulness", **served}
        sections = {"scoring": {"scorers": [{"kind": "rules"}, {**judge, "prices": judge_prices}]}}
        generation = {"generators": [generator]}
        return resolve(
            {"name": "a", "budget": {"max_cost": 1.0}, "generation": generation, **sections}, "t"
        )

    price = {"prompt_per_million_tokens": 1.0, "completion_per_million_tokens": 2.0}
    free = dict.fromkeys(price, 0.0)
    with pytest.raises(ConfigError, match="no `prices` are set, of any endpoint"):
        configured(None)
    with pytest.raises(ConfigError, match="no `prices` are set, of 'j'"):
        configured(price, api_key_variable="A_KEY")
    configured(price)
    configured(price, free, api_key_variable="A_KEY")


@pytest.mark.parametrize("limits", [{"max_cost": 0}, {"max_tokens": -1}, {"max_usd": 1}])
def test_a_budget_of_nothing_is_a_mistake(limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        BudgetConfig.checked(limits)
