"""A real server on a free loopback port: what it answers and refuses, and that sessions do not disturb each other."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from gymnasium import spaces
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from habitus.cli import main
from habitus.core.errors import ConfigError
from habitus.core.policy import Deployed
from habitus.core.protocols import Policy
from habitus.core.spec import Spec
from habitus.serve.client import Client
from habitus.serve.engine import Engine
from habitus.serve.page import PAGE
from habitus.serve.protocol import CODES, ServeError, array, pack, unpack
from habitus.serve.server import PolicyServer

OBS = spaces.Dict({"at": spaces.Box(-100, 100, (2,), np.float32), "kind": spaces.Discrete(3)})
SPEC = Spec(OBS, spaces.Box(-1000, 1000, (3,)))
HERE = {"at": [1.0, 2.0], "kind": 1}
SCALE = 1000.0


class Remember(Policy):
    """Acts by (how often it acted, what it earned, the first number it sees); infinite where that is 99."""

    def init(self):
        return jnp.zeros(2)

    def rewarded(self, carry, reward):
        return carry.at[1].add(reward)

    def report(self, carry):
        return {"staleness": carry[0].astype(jnp.int32) % 4}

    def __call__(self, obs, carry, key):
        seen = jnp.where(obs[0] == 99, jnp.nan, obs[0])
        return jnp.stack([carry[0], carry[1], seen]) / SCALE, carry.at[0].add(1)


@pytest.fixture(scope="module")
def server():
    made = PolicyServer(Deployed.of(Remember(), SPEC), hz=0.5, port=0, batch=3, chunk=4, max_sessions=4)
    with made.background():
        yield made


@pytest.fixture
def client(server):
    with Client(server.url) as made:
        yield made


def shown(reply):
    return np.round(reply.action, 3).tolist()


def raw(server, **options):
    socket = connect(server.url, compression=None, proxy=None, **options)
    assert unpack(socket.recv())["op"] == "hello"
    return socket


def asked(socket, message):
    socket.send(message if isinstance(message, (bytes, str)) else msgpack.packb(message))
    return unpack(socket.recv(timeout=20))


def test_it_is_compiled_before_it_listens_and_says_what_it_serves(server, client):
    assert server.compiled_s > 0
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    client.act(HERE)
    client.act(HERE, chunk=True, reward=1.0)
    client.reset(seed=1, batch=2)
    client.act({"at": np.zeros((2, 2)), "kind": [0, 1]})
    client.reset(members=[0])
    client.act({"at": np.zeros((2, 2)), "kind": [0, 1]}, chunk=True)
    assert [name for name in compiled if "compile" in name] == []
    jax.jit(lambda x: x + 3)(1.0)
    assert any("compile" in name for name in compiled)  # it would have been seen
    assert client.hello["batch"] == 3 and client.hello["chunk"] == 4 and client.hello["deadline_ms"] == 2000
    assert client.hello["spaces"]["action"]["shape"] == [3]


def test_a_session_remembers_and_tells_its_times(client):
    assert shown(client.act(HERE)) == [0, 0, 1]
    reply = client.act(HERE, reward=2.5)
    assert shown(reply) == [1, 2.5, 1] and reply.staleness == 2 and reply.report == {"staleness": 2}
    assert 0 < reply.infer_ms < 2000 and reply.queue_ms >= 0 and reply.deadline_met
    client.reset()
    assert shown(client.act(HERE)) == [0, 0, 1]


def test_a_chunk_is_what_it_would_do_next(client):
    assert client.act(HERE, chunk=True).action[:, 0].tolist() == [0, 1, 2, 3]
    assert shown(client.act(HERE))[0] == 4


def test_a_batch_has_a_carry_for_each_of_its_members(client):
    client.reset(batch=2)
    both = {"at": [[5.0, 0], [6.0, 0]], "kind": [0, 2]}
    assert shown(client.act(both)) == [[0, 0, 5], [0, 0, 6]]
    reply = client.act(both, reward=[1.0, 2.0])
    assert shown(reply) == [[1, 1, 5], [1, 2, 6]] and reply.staleness.tolist() == [2, 2]
    client.reset(members=[1])
    assert shown(client.act(both)) == [[2, 1, 5], [0, 0, 6]]
    assert client.act(both, chunk=True).action.shape == (4, 2, 3)


def test_sessions_have_carries_of_their_own(server, client):
    with Client(server.url) as other:
        for _ in range(3):
            client.act(HERE)
        assert shown(other.act(HERE))[0] == 0 and shown(client.act(HERE))[0] == 3


BAD = {
    "text": ("hello", "malformed"),
    "no MessagePack": (b"\xc1\x00", "malformed"),
    "cut": (pack({"op": "act", "id": 7, "obs": HERE})[:-3], "malformed"),
    "deep": (b"\x91" * 3000 + b"\x01", "malformed"),
    "a list": ([1, 2], "malformed"),
    "no id": ({"op": "act", "obs": HERE}, "malformed"),
    "no op": ({"id": 7}, "malformed"),
    "no obs": ({"op": "act", "id": 7}, "malformed"),
    "words": ({"op": "act", "id": 7, "obs": {"at": ["a", "b"], "kind": 1}}, "malformed"),
    "ragged": ({"op": "act", "id": 7, "obs": {"at": [[1], [1, 2]], "kind": 1}}, "malformed"),
    "wrong bytes": (
        {"op": "act", "id": 7, "obs": {"at": {"dtype": "float32", "shape": [2], "data": b"123"}, "kind": 1}},
        "malformed",
    ),
    "pickles": (
        {"op": "act", "id": 7, "obs": {"at": {"dtype": "object", "shape": [1], "data": b"12345678"}, "kind": 1}},
        "malformed",
    ),
    "negative": (
        {"op": "act", "id": 7, "obs": {"at": {"dtype": "int8", "shape": [-1, -2], "data": b"12"}, "kind": 1}},
        "malformed",
    ),
    "NaN": ({"op": "act", "id": 7, "obs": {"at": [1.0, float("nan")], "kind": 1}}, "not_finite"),
    "huge": ({"op": "act", "id": 7, "obs": {"at": [1.0, 1e300], "kind": 1}}, "wrong_shape"),
    "NaN reward": ({"op": "act", "id": 7, "obs": HERE, "reward": float("inf")}, "not_finite"),
    "shape": ({"op": "act", "id": 7, "obs": {"at": [1.0, 2.0, 3.0], "kind": 1}}, "wrong_shape"),
    "part": ({"op": "act", "id": 7, "obs": {"at": [1.0, 2.0]}}, "wrong_shape"),
    "kind": ({"op": "act", "id": 7, "obs": {"at": [1.0, 2.0], "kind": 3}}, "wrong_shape"),
    "fraction": ({"op": "act", "id": 7, "obs": {"at": [1.0, 2.0], "kind": 0.5}}, "wrong_shape"),
    "batch": ({"op": "reset", "id": 7, "batch": 4}, "wrong_shape"),
    "members": ({"op": "reset", "id": 7, "members": [0]}, "out_of_order"),
    "old id": ({"op": "act", "id": 0, "obs": HERE}, "out_of_order"),
    "early": ({"op": "act", "id": 7, "obs": HERE, "step": 2}, "out_of_order"),
    "late": ({"op": "act", "id": 7, "obs": HERE, "step": 0}, "out_of_order"),
    "policy": ({"op": "act", "id": 7, "obs": {"at": [99.0, 0.0], "kind": 1}}, "policy_failed"),
    "large": (b"\x00" * 5000, "too_large"),
}


def test_what_is_wrong_is_said_and_changes_neither_this_session_nor_another(server, client):
    client.act(HERE)
    for count, (name, (message, code)) in enumerate(BAD.items(), 1):
        with raw(server) as socket:
            assert asked(socket, {"op": "act", "id": 0, "obs": HERE})["action"] is not None
            found = asked(socket, message)
            assert (found["op"], found["code"]) == ("error", code), (name, found)
            assert code in CODES and found["message"].endswith("."), name
            again = asked(socket, {"op": "act", "id": 8, "obs": HERE, "step": 1})
            assert np.round(array(again["action"]), 3).tolist() == [1, 0, 1], name
        assert shown(client.act(HERE))[0] == count


def test_far_too_large_a_message_ends_its_connection_and_no_other(server, client):
    with raw(server) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            asked(socket, b"\x00" * (17 * server.max_bytes))
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    assert shown(client.act(HERE))[0] == 0


def settle(server):
    """Until the server has heard that all clients left."""
    for _ in range(500):
        if server.connected == 0:
            return
        time.sleep(0.02)
    raise AssertionError("sessions stay open")


def test_there_are_only_so_many_sessions(server):
    settle(server)
    held = [Client(server.url) for _ in range(4)]
    with pytest.raises(ServeError, match="takes 4 sessions") as refused:
        Client(server.url)
    assert refused.value.code == "busy"
    for one in held:
        one.close()
    settle(server)
    with Client(server.url) as after:
        assert shown(after.act(HERE))[0] == 0


def fetched(server, path, **headers):
    asked = urllib.request.Request(f"http{server.url[2:]}{path}", headers=headers)
    with urllib.request.urlopen(asked, timeout=20) as found:
        return found.read().decode(), found.headers


def test_the_page_shows_latencies_and_sessions_and_asks_nothing_of_the_network(server, client):
    client.act(HERE)
    page, headers = fetched(server, "/")
    assert page == PAGE and "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    stats = json.loads(fetched(server, "/stats")[0])
    assert [s["step"] for s in stats["sessions"] if s["number"] == client.hello["session"]] == [1]
    assert sum(stats["latency"]["counts"]) == stats["latency"]["acts"] > 0
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetched(server, "/elsewhere")


@pytest.mark.parametrize("headers", [dict(Origin="http://evil.example"), dict(Host="evil.example:80")])
def test_other_sites_may_not_use_it_through_a_browser(server, headers):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetched(server, "/stats", **headers)


def test_late_answers_are_counted_and_a_token_is_asked_for():
    policy = Deployed.of(Remember(), SPEC)
    made = PolicyServer(policy, hz=1e6, port=0, token="open")
    with made.background() as url:
        for token in (None, "shut"):
            with pytest.raises(ServeError) as refused:
                Client(url, token)
            assert refused.value.code == "unauthorised"
        with Client(url, "open") as client:
            reply = client.act(HERE)
            assert not reply.deadline_met and made.stats()["sessions"][0]["missed"] == 1
            with pytest.raises(ServeError, match="one observation at a time"):
                client.reset(batch=1)
        assert json.loads(fetched(made, "/stats?token=open")[0])["latency"]["missed"] == 1
    with pytest.raises(ServeError) as gone:
        Client(url, "open")
    assert gone.value.code == "closed"


def test_the_same_seed_is_the_same_session_as_in_python():
    from habitus.nets.policies import Noisy

    policy = Deployed.of(Noisy(Remember(), 0.1), SPEC)
    engine, session = Engine(policy), policy.session(seed=3)
    from habitus.serve.sessions import ServedSession, Tally

    served = ServedSession(1, engine, 20.0, Tally())
    served.answer({"op": "reset", "id": 0, "seed": 3}, 0.0)
    obs = {"at": np.float32([1, 2]), "kind": np.int32(1)}
    for i in range(1, 4):
        np.testing.assert_allclose(
            served.answer({"op": "act", "id": i, "obs": HERE}, 0.0)["action"], session.act(obs), rtol=1e-5
        )


@pytest.mark.parametrize(
    "settings", [dict(host="0.0.0.0"), dict(hz=0.0), dict(port=-1), dict(batch=0), dict(max_sessions=0)]
)
def test_settings_out_of_their_domain_are_refused(settings):
    with pytest.raises(ConfigError):
        PolicyServer(Deployed.of(Remember(), SPEC), **settings)


@pytest.mark.parametrize("options", [["--host", "0.0.0.0"], ["--policy", "1"]])
def test_the_command_refuses_what_cannot_be_served(options, tmp_path, capsys, monkeypatch):

    from habitus.core.spec import Spec as _Spec
    from habitus.nets.heads import DeterministicActor
    from habitus.nets.policies import Deterministic

    monkeypatch.delenv("HABITUS_TOKEN", raising=False)
    spec = _Spec(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))
    Deployed.of(Deterministic(DeterministicActor(spec, (4,), jax.random.key(0))), spec).save(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", str(tmp_path), *options])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.splitlines()) == 1 and ("token" in said or "--policy" in said)
