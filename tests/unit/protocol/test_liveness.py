"""Every rule of Liveness, with a clock that the test moves."""

import itertools

import pytest

from tunnel.protocol.liveness import (
    AT_ONCE,
    INTERVAL,
    PATIENCE,
    WATCHED,
    Health,
    Liveness,
    SendEcho,
    StateChanged,
)
from tunnel.status import PeerState
from tunnel.types import Endpoint

A, B = Endpoint("192.0.2.1"), Endpoint("192.0.2.2")
UP, SILENT, UNKNOWN = PeerState.UP, PeerState.SILENT, PeerState.UNKNOWN


class World:
    """Peers that answer after a while, or not at all, and what they made happen."""

    def __init__(self, *peers: Endpoint, trip: float | None = 0.01) -> None:
        self.liveness = Liveness(itertools.count(1))
        self.now = 0.0
        self.trip = trip
        self.asked: list[float] = []
        self.became: list[tuple[float, StateChanged]] = []
        self._answers: list[tuple[float, Endpoint, int]] = []
        for peer in peers:
            self.liveness.add(peer, now=0)

    def run(self, *, until: float) -> None:
        """Moves the clock from tick to tick and from answer to answer."""
        while True:
            due = self.liveness.next_tick(self.now)
            times = [one for one in (due, *(at for at, *_ in self._answers)) if one is not None]
            if not times or min(times) > until:
                self.now = until
                return
            self.now = min(times)
            self._step()

    def _step(self) -> None:
        for answer in [one for one in self._answers if one[0] <= self.now]:
            self._answers.remove(answer)
            for became in self.liveness.received_reply(*answer[1:], now=self.now) or []:
                self.became.append((self.now, became))
        for action in self.liveness.tick(now=self.now):
            if isinstance(action, StateChanged):
                self.became.append((self.now, action))
                continue
            self.asked.append(self.now)
            if self.trip is not None:
                self._answers.append((self.now + self.trip, action.endpoint, action.id))


def health(liveness: Liveness, peer: Endpoint = A) -> Health:
    found = liveness.health(peer)
    assert found is not None
    return found


def test_the_first_echo_leaves_at_once_and_an_answer_says_up() -> None:
    world = World(A)
    world.run(until=1)
    assert world.asked == [0]
    assert world.became == [(0.01, StateChanged(A, UP))]
    found = health(world.liveness)
    assert (found.state, found.since, found.rtt, found.loss) == (UP, 0.01, 0.01, 0)


def test_a_few_a_minute() -> None:
    world = World(A)
    world.run(until=600)
    assert len(world.asked) == 4 * 10 + 1
    assert world.became == [(0.01, StateChanged(A, UP))]


def test_a_peer_that_never_answers_stays_unknown() -> None:
    world = World(A, trip=None)
    world.run(until=600)
    assert world.became == []
    found = health(world.liveness)
    assert (found.state, found.since, found.rtt, found.loss) == (UNKNOWN, 0, None, None)
    assert len(world.asked) < 100


def test_silent_after_three_missed_and_up_again_with_the_next_answer() -> None:
    world = World(A)
    world.run(until=INTERVAL - 1)
    world.trip = None
    world.run(until=60)
    (_, up), (when, silent) = world.became
    assert (up, silent) == (StateChanged(A, UP), StateChanged(A, SILENT))
    # The first of them goes unanswered at the usual time; then we want to be sure soon.
    assert when == pytest.approx(INTERVAL + 3 * PATIENCE)
    assert health(world.liveness).since == when
    assert health(world.liveness).loss == pytest.approx((len(world.asked) - 1) / len(world.asked))
    world.trip = 0.01
    world.run(until=60 + INTERVAL)
    assert world.became[2][1] == StateChanged(A, UP)


def test_two_missed_are_forgiven() -> None:
    world = World(A)
    world.run(until=1)
    world.trip = None
    world.run(until=INTERVAL + 1.5)
    world.trip = 0.01
    world.run(until=60)
    assert len(world.became) == 1


def test_a_late_answer_is_none() -> None:
    world = World(A, trip=PATIENCE + 0.1)
    world.run(until=100)
    assert world.became == []


def test_unexpected_answers_change_nothing() -> None:
    liveness = Liveness(itertools.count(7))
    liveness.add(A, now=0)
    liveness.add(B, now=0)
    assert liveness.tick(now=0) == [SendEcho(A, 7), SendEcho(B, 8)]
    assert liveness.received_reply(A, 8, now=0.1) is None  # another peer's
    assert liveness.received_reply(A, 9, now=0.1) is None
    assert liveness.received_reply(Endpoint("192.0.2.9"), 7, now=0.1) is None
    assert liveness.received_reply(A, 7, now=0.1) == [StateChanged(A, UP)]
    assert liveness.received_reply(A, 7, now=0.1) is None  # twice
    assert health(liveness, B).state is UNKNOWN


def test_rtt_is_smoothed() -> None:
    world = World(A, trip=0.1)
    world.run(until=1)
    world.trip = 0.2
    world.run(until=INTERVAL + 1)
    assert health(world.liveness).rtt == pytest.approx(0.1 + 0.1 / 8)
    assert world.liveness.rtt(A) == health(world.liveness).rtt
    assert world.liveness.rtt(B) is None


def test_watching_sends_an_echo_every_second_for_a_while() -> None:
    world = World(A)
    world.run(until=5)
    world.liveness.watch(until=8, now=5)
    world.run(until=14)
    assert world.asked == [0, 6, 7, 8]
    world.run(until=60)
    assert len(world.asked) == 4 + 3


def test_looking_all_the_time_does_not_put_echoes_off() -> None:
    world = World(A)
    for step in range(100):
        world.run(until=step / 10)
        world.liveness.watch(until=world.now + 3, now=world.now)
    assert len(world.asked) >= 9


def test_a_peer_that_sends_an_echo_gets_one_soon() -> None:
    """A peer that was started after us is not unknown for as long as our echoes are apart."""
    world = World(A, trip=None)
    world.run(until=5)
    world.trip = 0.01
    assert world.liveness.received_request(A)
    assert not world.liveness.received_request(A)
    world.run(until=6)
    assert world.became == [(5.01, StateChanged(A, UP))]
    assert not world.liveness.received_request(A)
    assert not world.liveness.received_request(B)


def test_a_flood_of_questions_makes_one_echo_a_second() -> None:
    world = World(A, trip=None)
    for step in range(1000):
        world.liveness.received_request(A)
        world.run(until=step / 100)
    assert len(world.asked) <= 10 / WATCHED + 1


def test_a_peer_with_a_new_address_is_unknown_again() -> None:
    world = World(A)
    world.run(until=5)
    world.liveness.add(A, now=5)
    assert health(world.liveness).state is UNKNOWN
    world.run(until=6)
    assert world.became[1] == (5.01, StateChanged(A, UP))


def test_a_removed_peer_is_forgotten() -> None:
    world = World(A, B)
    world.run(until=1)
    world.liveness.remove(A)
    world.liveness.remove(A)
    assert world.liveness.health(A) is None
    assert len(world.liveness) == 1
    world.liveness.remove(B)
    assert world.liveness.next_tick(1) is None


def test_very_many_are_asked_in_turns() -> None:
    liveness = Liveness(itertools.count())
    peers = [Endpoint(f"198.18.{n // 250}.{n % 250 + 1}") for n in range(3 * AT_ONCE)]
    for peer in peers:
        liveness.add(peer, now=0)
    asked = [liveness.tick(now=0) for _ in range(3)]
    assert [len(one) for one in asked] == [AT_ONCE] * 3
    assert {action.endpoint for one in asked for action in one} == set(peers)
    assert liveness.tick(now=0) == []
