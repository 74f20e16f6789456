"""Requests to a local stub server: every fault, failover, limits, budget and clean ends."""

import contextlib
import socket
import threading
import time
from collections import Counter

import aiohttp
import httpx
import openai
import pytest

from stages import endpoint_preflight
from stages.budget import BLIND_REQUESTS, Budget, Prices, Usage
from stages.configuration import Config
from stages.endpoint_answers import refusal
from stages.endpoint_settings import EndpointConfig
from stages.endpoints import EndpointPool, Reply, RequestFailedError
from stages.errors import (
    BudgetError,
    ConfigError,
    EndpointError,
    PrefmillError,
    UnreachableError,
)
from tests.stub_server import FAULTS, Stub

GONE = "http://127.0.0.1:9/v1"  # the discard port: nobody listens


def pool_of(*stubs, budget=None, prices=None, **settings):
    urls = [stub if isinstance(stub, str) else stub.url for stub in stubs]
    config = EndpointConfig(base_urls=urls, **{"timeout_seconds": 20.0, **settings})
    return EndpointPool(config, budget, prices, backoff_seconds=0.001)


def body(i, **more):
    messages = [{"role": "user", "content": f"prompt {i}"}]
    return {"model": "stub-model", "messages": messages, "seed": i, **more}


def asked(pool, items, **more):
    """Return by item the text of its first choice, or the reason why there is none."""

    async def work(item):
        try:
            reply = await pool.post("/chat/completions", body(item, **more))
        except RequestFailedError as error:
            return item, error.reason
        return item, reply.body["choices"][0]["message"]["content"]

    with pool:
        results = list(pool.map(work, items))
    assert len(results) == len(set(dict(results))) == len(list(items))
    assert not [thread for thread in threading.enumerate() if thread.name == "requests"]
    return dict(results)


def until_error(results):
    """Return what is yielded before the error, and the error."""
    yielded = []
    try:
        yielded.extend(results)  # keeps what came before an error
    except PrefmillError as error:
        return yielded, error
    raise AssertionError("no error")


def right(answers):
    """Return how many items have an answer to their own prompt; any other one is an error."""
    good = [text.startswith(f"[prompt {item}] ") for item, text in answers.items()]
    assert all(good)
    return len(good)


def test_every_prompt_gets_its_own_answer_and_is_asked_once():
    with Stub(latency_seconds=0.001) as stub:
        assert right(asked(pool_of(stub), range(300))) == 300
    assert set(stub.asked.values()) == {1}
    assert len(stub.asked) == 300


@pytest.mark.parametrize(
    "fault", sorted(set(FAULTS) - {"hang", "fewer", "null", "empty", "wrong_language"})
)
def test_a_fault_on_every_fourth_request_is_asked_again(fault):
    with Stub(faults={fault: 0.25}) as stub:
        answers = asked(pool_of(stub, attempts=12), range(80))
    assert right(answers) == 80
    assert max(stub.asked.values()) > 1
    assert set(stub.answered.values()) == {1}


def test_a_hanging_request_is_given_up_in_time_and_asked_again():
    with Stub(faults={"hang": 0.1}) as stub:
        answers = asked(pool_of(stub, timeout_seconds=0.5, attempts=12), range(40))
    assert right(answers) == 40


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("http_500", "http_500"),
        ("drop", "dropped_connection"),
        ("interrupted", "dropped_connection"),
        ("truncated", "broken_json"),
        ("hang", "timeout"),
    ],
)
def test_a_request_that_never_succeeds_is_given_up_with_its_reason(fault, reason):
    with Stub(faults={fault: 1.0}) as stub:
        answers = asked(pool_of(stub, attempts=3, timeout_seconds=0.2), range(2))
    assert answers == {0: reason, 1: reason}
    assert list(stub.asked.values()) == [3, 3]


def test_refusals_do_not_use_up_the_attempts_of_a_request():
    # With 2 attempts and 70 % refusals half of the requests would fail if they counted.
    with Stub(faults={"http_429": 0.7}) as stub:
        assert right(asked(pool_of(stub, attempts=2), range(60))) == 60


def test_a_server_that_takes_four_at_once_gets_about_four():
    with Stub(maximum_concurrent=4, latency_seconds=0.002) as stub:
        pool = pool_of(stub)
        assert right(asked(pool, range(300))) == 300
    (server,) = pool._servers.servers
    assert server.limit < 9  # from 32, halved by every round trip with a 429
    assert stub.statuses[429] < 300


def test_no_more_than_the_maximum_is_in_flight_over_all_servers():
    with Stub(latency_seconds=0.002) as one, Stub(latency_seconds=0.002) as two:
        answers = asked(pool_of(one, two, maximum_in_flight=6), range(60))
    assert right(answers) == 60
    assert one.peak + two.peak <= 6 + 1  # peaks at different times may add up to one more
    assert min(one.served, two.served) >= 20  # shared out evenly


def test_the_least_busy_server_gets_the_next_request():
    with Stub(latency_seconds=0.001) as fast, Stub(latency_seconds=0.05) as slow:
        assert right(asked(pool_of(fast, slow, maximum_in_flight=8), range(200))) == 200
    assert fast.served > 3 * slow.served


def test_the_work_of_a_killed_server_moves_to_the_others():
    with Stub(latency_seconds=0.005) as stays, Stub(latency_seconds=0.005) as dies:
        pool = pool_of(stays, dies, maximum_in_flight=16)

        async def work(item):
            reply = await pool.post("/chat/completions", body(item))
            return item, reply.body["choices"][0]["message"]["content"]

        answers = {}
        with pool:
            for item, text in pool.map(work, range(300)):
                answers[item] = text
                if len(answers) == 50:
                    dies.stop()
    assert right(answers) == 300
    assert dies.served >= 10


def test_a_server_that_comes_back_is_used_again():
    with Stub(latency_seconds=0.002) as stub:
        pool = pool_of(stub, maximum_in_flight=8)

        async def work(item):
            return await pool.post("/chat/completions", body(item))

        replies = []
        with pool:
            for reply in pool.map(work, range(120)):
                replies.append(reply)
                if len(replies) == 40:
                    stub.stop()
                    back = threading.Timer(0.2, stub.__enter__)
                    back.start()
        back.join()
        # No attempt is used up by a server that isn't there.
        assert len(replies) == 120


def test_when_every_server_is_gone_the_run_stops_and_keeps_what_it_has():
    with Stub(latency_seconds=0.002) as stub:
        pool = pool_of(stub, GONE, maximum_in_flight=8, give_up_after_seconds=0.3)

        async def work(item):
            return await pool.post("/chat/completions", body(item))

        def items():
            for item in range(10_000):
                if item == 50:
                    stub.stop()
                yield item

        replies, error = until_error(pool.map(work, items()))
    assert 30 <= len(replies) <= stub.served
    assert "no server could be used for 0.3 s" in str(error)
    assert stub.url in str(error)
    assert GONE in str(error)
    assert isinstance(error, ConnectionError)


def test_a_server_that_only_refuses_is_given_up_too():
    with (
        Stub(faults={"http_429": 1.0}) as stub,
        pytest.raises(EndpointError, match=r"no server could be used .*http_429"),
    ):
        asked(pool_of(stub, give_up_after_seconds=0.3, attempts=1000), range(4))


@pytest.mark.parametrize(
    ("settings", "more", "sentence"),
    [
        ({"api_key": "secret"}, {}, r"the key is refused \(HTTP 401: Incorrect API key"),
        ({}, {"model": "other"}, r"the request is refused \(HTTP 404: The model `other` does not"),
        (
            {"structured_output": False},
            {"response_format": {"type": "json_object"}},
            "the first 5 requests were all rejected: response_format is not supported",
        ),
    ],
)
def test_what_no_request_can_survive_stops_the_run(settings, more, sentence):
    with Stub(**settings) as stub:
        with pytest.raises(EndpointError, match=sentence):
            asked(pool_of(stub, maximum_in_flight=2), range(1000), **more)
        assert sum(stub.asked.values()) <= 8


def test_one_request_that_is_rejected_is_no_reason_to_stop():
    with Stub(maximum_choices=4) as stub:
        pool = pool_of(stub)

        async def work(item):
            try:
                await pool.post("/chat/completions", body(item, n=5 if item % 2 else 4))
            except RequestFailedError as error:
                return error.reason
            return "answered"

        async def first(item):
            return await pool.post("/chat/completions", body(item))

        with pool:
            list(pool.map(first, [0]))
            reasons = Counter(pool.map(work, range(1, 41)))
    assert reasons == {"answered": 20, "rejected: n must be at most 4": 20}


def test_the_budget_stops_between_two_requests():
    # Each answer has 2 prompt tokens and 3 completion tokens: "[prompt 1] 0f3a2b".
    budget = Budget(maximum_tokens=50)
    with Stub() as stub:
        pool = pool_of(stub, budget=budget, maximum_in_flight=1)

        async def work(item):
            return await pool.post("/chat/completions", body(item))

        replies, error = until_error(pool.map(work, range(100)))
    assert isinstance(error, BudgetError)
    assert str(error).startswith("50 tokens are used and max_tokens is 50.")
    assert len(replies) == stub.served == 10
    assert budget.tokens == 50


def test_what_is_in_flight_when_the_budget_ends_is_yielded():
    with Stub(latency_seconds=0.002) as stub:
        pool = pool_of(stub, budget=Budget(maximum_tokens=50), maximum_in_flight=8)

        async def work(item):
            return await pool.post("/chat/completions", body(item))

        replies, error = until_error(pool.map(work, range(1000)))
    assert isinstance(error, BudgetError)
    assert len(replies) == stub.served == 10


def counted_in(stub, budget, item_requests=1, items=200, **settings):
    """Ask until the budget stops it; return how many requests were answered."""
    prices = Prices(completion_per_million_tokens=1_000_000)  # 3 a request
    pool = pool_of(stub, budget=budget, prices=prices, **{"maximum_in_flight": 64, **settings})

    async def work(item):
        for _ in range(item_requests):
            await pool.post("/chat/completions", body(item))

    with pool:
        _, error = until_error(pool.map(work, range(items)))
    assert isinstance(error, BudgetError)
    return stub.served


@pytest.mark.parametrize("limit", [{"maximum_tokens": 500}, {"maximum_cost": 300.0}])
def test_many_in_flight_pass_no_limit(limit):
    with Stub(latency_seconds=0.01) as stub:
        assert counted_in(stub, Budget(**limit)) == 100
        assert stub.peak > 16


def test_a_budget_smaller_than_a_request_lets_few_be_asked():
    with Stub(latency_seconds=0.01) as stub:
        assert counted_in(stub, Budget(maximum_tokens=1)) == BLIND_REQUESTS


def test_items_of_several_requests_are_counted_whole():
    with Stub(latency_seconds=0.01) as stub:
        served = counted_in(stub, Budget(maximum_cost=300.0), item_requests=5)
    assert 100 <= served < 100 + 5 * BLIND_REQUESTS


def test_an_answer_that_tells_no_usage_holds_nothing_back():
    with Stub(latency_seconds=0.01) as stub:
        pool = pool_of(stub, budget=Budget(maximum_cost=1.0), maximum_in_flight=64)
        asked(pool, range(300))  # without prices nothing costs anything
        assert stub.peak > 16


def test_prices_are_charged():
    budget = Budget(maximum_cost=1.0)
    prices = Prices(prompt_per_million_tokens=1_000, completion_per_million_tokens=20_000)
    with Stub() as stub:
        asked(pool_of(stub, budget=budget, prices=prices), range(10))
    # 10 x (2 x 0.001 + 3 x 0.02) = 0.62
    assert budget.cost == pytest.approx(0.62)
    assert budget.exhausted() == ""
    budget.charge(0, 0.4)
    assert budget.exhausted() == "1.0200 is spent and max_cost is 1.0000"


def test_the_budget_is_thread_safe():
    budget = Budget()
    threads = [
        threading.Thread(target=lambda: [budget.charge(1, 0.5) for _ in range(5_000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (budget.tokens, budget.cost) == (20_000, 10_000.0)


@pytest.mark.parametrize("end", ["close", "leave_the_pool", "interrupt"])
def test_leaving_early_leaves_no_thread_and_no_connection(end):
    with Stub() as stub:
        pool = pool_of(stub, timeout_seconds=60.0)
        stub.faults = {"hang": 0.5}

        async def work(item):
            return await pool.post("/chat/completions", body(item))

        results = pool.map(work, range(100))
        next(results)
        if end == "close":
            results.close()
        elif end == "leave_the_pool":
            with pool:
                pass
        else:
            with pytest.raises(KeyboardInterrupt):
                results.throw(KeyboardInterrupt())
        assert not [thread for thread in threading.enumerate() if thread.name == "requests"]
        for _ in range(500):
            if not stub.concurrent:
                break
            time.sleep(0.01)
        assert stub.concurrent == 0
        # The pool can be used again.
        stub.faults = {}
        assert right(asked(pool, range(5))) == 5


def test_requests_per_minute_spread_the_requests():
    # Ten a second, and a second's worth at once: the 13th comes 0.2 s after the first.
    with Stub() as stub:
        started = time.monotonic()
        asked(pool_of(stub, requests_per_minute=600), range(13))
        assert time.monotonic() - started >= 0.2


def test_tokens_per_minute_hold_requests_back():
    # 100 a second, and a second's worth at once. The first answer shows that each takes 5, so 26
    # take 130 and the last one waits for 125 less what is let through: 0.2 s.
    with Stub() as stub:
        started = time.monotonic()
        asked(pool_of(stub, tokens_per_minute=6_000, maximum_in_flight=1), range(26))
        assert time.monotonic() - started >= 0.2


def test_few_are_asked_until_one_shows_how_many_tokens_it_takes():
    known = []

    def respond(body):
        known.append(stub.asked.total())
        return "one two"

    with Stub(latency_seconds=0.1, respond=respond) as stub:
        asked(pool_of(stub, tokens_per_minute=600_000, maximum_in_flight=64), range(64))
    assert known[0] == BLIND_REQUESTS
    with Stub(faults={"http_500": 0.9}) as stub:
        answers = asked(pool_of(stub, tokens_per_minute=600_000, attempts=2), range(30))
    assert set(answers.values()) >= {"http_500"}, "failures let the next ones go"


def test_no_turns_gather_while_no_server_can_be_used():
    # 20 a second. For 0.5 s the only server says to wait: then not the 10 of that time at once.
    with Stub(maximum_concurrent=0, retry_after="1") as stub:
        pool = pool_of(stub, requests_per_minute=1_200)
        times = []

        async def work(item):
            await pool.post("/chat/completions", body(item))
            times.append(time.monotonic())

        with pool:
            mapping = pool.map(work, range(45))
            threading.Timer(0.5, lambda: setattr(stub, "maximum_concurrent", None)).start()
            list(mapping)
    assert max(times) - min(times) >= 20 / 20 - 0.1, "a second's worth, the others one by one"


@pytest.mark.parametrize(
    ("key", "stored"), [("token", "a token to test"), ("a-secret-key-0123", "a *** to test")]
)
def test_an_answer_is_kept_word_for_word_but_for_a_real_key(monkeypatch, key, stored):
    monkeypatch.setenv("STUB_KEY", key)
    budget = Budget()
    with Stub(api_key=key, respond=lambda _: f"a {key} to test") as stub:
        answers = asked(pool_of(stub, budget=budget, api_key_variable="STUB_KEY"), range(1))
    assert answers == {0: stored}
    assert budget.tokens > 0


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("STUB_KEY", "secret")
    with Stub(api_key="secret") as stub:
        pool = pool_of(stub, api_key_variable="STUB_KEY")
        assert pool.check("stub-model").context_tokens == 4096
        assert right(asked(pool, range(3))) == 3
    monkeypatch.delenv("STUB_KEY")
    with pytest.raises(ConfigError, match="the environment variable STUB_KEY is not set"):
        pool_of(stub, api_key_variable="STUB_KEY")


def test_the_sdks_own_key_is_sent_to_nobody(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "meant for another server")
    with Stub(api_key="meant for another server") as stub:
        with pytest.raises(EndpointError, match="the key is refused"):
            pool_of(stub).check("stub-model")
        with pytest.raises(EndpointError, match="the key is refused"):
            asked(pool_of(stub), range(1))


def test_the_preflight_names_what_is_served():
    with Stub() as stub, Stub(context_tokens=2048) as short, Stub(context_tokens=None) as silent:
        assert pool_of(stub, short, silent, GONE).check("stub-model") == ("stub-model", 2048)
        assert pool_of(silent).check("stub-model") == ("stub-model", None)
        with pytest.raises(EndpointError, match="'stub-modle'; nearest known: stub-model"):
            pool_of(stub).check("stub-modle")
        with pytest.raises(EndpointError, match="they usually end in /v1"):
            pool_of(stub.url.removesuffix("/v1")).check("stub-model")
        assert stub.served == 0


def test_the_preflight_says_that_nobody_is_there():
    with pytest.raises(EndpointError, match=r"no server can be reached \(http://127.0.0.1:9/v1"):
        pool_of(GONE).check("stub-model")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_refuses_for_now_is_left_out(monkeypatch, status):
    refused = httpx.Response(status, request=httpx.Request("GET", GONE))
    served = endpoint_preflight._served

    def answered(url, *rest):
        if url == GONE:
            raise openai.APIStatusError("loading", response=refused, body=None)
        return served(url, *rest)

    monkeypatch.setattr(endpoint_preflight, "_served", answered)
    with Stub() as stub:
        assert pool_of(GONE, stub).check("stub-model").context_tokens == 4096
    with pytest.raises(UnreachableError, match=r"no server can be reached .*loading"):
        pool_of(GONE).check("stub-model")


@pytest.mark.parametrize(
    ("more", "error", "kind", "sentence"),
    [
        ((), socket.EAI_NONAME, EndpointError, r"no server has such a name \(http://hots/v1: "),
        ((GONE,), socket.EAI_NONAME, UnreachableError, "no server can be reached"),
        ((), socket.EAI_AGAIN, UnreachableError, "no server can be reached"),
    ],
)
def test_a_name_that_does_not_exist_is_not_waited_for(monkeypatch, more, error, kind, sentence):
    known = socket.getaddrinfo

    def looked_up(host, *rest, **settings):
        if host == "hots":
            raise socket.gaierror(error, "as a name server says")
        return known(host, *rest, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with pytest.raises(EndpointError, match=sentence) as caught:
        pool_of("http://hots/v1", *more).check("stub-model")
    assert type(caught.value) is kind
    if kind is EndpointError:  # but where names come with their containers
        with pytest.raises(UnreachableError):
            pool_of("http://hots/v1", wait_for_name=True).check("stub-model")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"base_urls": ["localhost:8000"]}, "is not an http:// or https:// address"),
        ({"base_urls": ["http://me:key@host/v1"]}, r"base_urls\[0\] holds what looks like a key"),
        ({"base_urls": ["http://host/v1", "http://host/v1/"]}, "an address is named twice"),
        ({"api_key": "sk-1"}, "api_key holds what looks like a key"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(values, sentence):
    assert issubclass(EndpointConfig, Config)
    with pytest.raises(ConfigError, match=sentence):
        EndpointConfig.checked(values)


def test_a_pool_without_servers_is_refused():
    with pytest.raises(ConfigError, match="no server is named"):
        EndpointPool(EndpointConfig())


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"Retry-After": "7"}, 7, 7),
        ({"Retry-After": "0.5"}, 0.5, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25, 0.25),
        ({"Retry-After": "Fri, 21 Oct 2195 07:28:00 GMT"}, 1e9, 1e10),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers, low, high):
    failure = refusal(429, aiohttp.typedefs.CIMultiDict(headers), b"")
    assert failure.kind == "busy"
    assert low <= failure.retry_after_seconds <= high


@pytest.mark.parametrize("value", ["", "soon", "-3", "inf", "nan"])
def test_a_retry_after_without_sense_is_none(value):
    headers = aiohttp.typedefs.CIMultiDict({"Retry-After": value})
    assert refusal(429, headers, b"").retry_after_seconds is None


@pytest.mark.parametrize(
    ("status", "raw", "reason", "kind"),
    [
        (400, b'{"error": {"message": "too long"}}', "rejected: too long", "rejected"),
        (400, b'{"message": "vLLM says so"}', "rejected: vLLM says so", "rejected"),
        (422, b'{"detail": [{"msg": "no"}]}', "rejected: {'detail': [{'msg': 'no'}]}", "rejected"),
        (400, b"<html>\n\x1b[31mno", "rejected: <html> [31mno", "rejected"),
        (400, b"\xff" * 10**6, "rejected: " + "\ufffd" * 297 + "...", "rejected"),
        (500, b"", "http_500", "failed"),
        (503, b"", "http_503", "failed"),
        (529, b"", "http_529", "failed"),
        (408, b"", "http_408", "failed"),
        (429, b'{"error": {"code": "rate_limit"}}', "http_429", "busy"),
        (
            429,
            b'{"error": {"code": "insufficient_quota", "message": "pay"}}',
            "the account has no quota left: pay",
            "fatal",
        ),
        (403, b"", "the key is refused (HTTP 403: )", "fatal"),
        (301, b"", "the request is refused (HTTP 301: )", "fatal"),
    ],
)
def test_what_a_status_means(status, raw, reason, kind):
    assert refusal(status, {}, raw) == (reason, kind, None)


@pytest.mark.parametrize(
    ("found", "usage"),
    [
        ({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}, (3, 4)),
        ({"usage": {"prompt_tokens": "3", "completion_tokens": -4}}, (0, 0)),
        ({"usage": None}, (0, 0)),
        ({"usage": [1]}, (0, 0)),
        ({}, (0, 0)),
    ],
)
def test_usage_is_what_a_response_says(found, usage):
    assert Usage.of(found) == usage


def test_a_reply_says_where_and_how_long():
    with Stub(latency_seconds=0.01) as stub:
        pool = pool_of(stub)

        async def work(item):
            return await pool.post("/chat/completions", body(item))

        with pool:
            (reply,) = pool.map(work, [1])
        assert isinstance(reply, Reply)
        assert reply.url == stub.url
        assert 0.01 <= reply.latency_seconds < 20


def test_a_proxy_of_the_environment_is_asked_except_where_it_says_not(monkeypatch):
    with Stub() as stub, contextlib.ExitStack() as stack:
        monkeypatch.setenv("http_proxy", GONE.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert right(asked(stack.enter_context(pool_of(stub)), range(2))) == 2
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9"):
            asked(pool_of(stub, give_up_after_seconds=0.1), range(2))
