"""Every rule of Paths, over a path that the test makes narrower and wider, or lossy."""

import itertools
import random
from collections.abc import Callable

import pytest

from tunnel.protocol.path_mtu import (
    BASE,
    BUSY,
    IDLE,
    MOST,
    PATIENCE,
    WIDER,
    PathMtuChanged,
    PathMtus,
    SendProbe,
)
from tunnel.types import Endpoint

A, B = Endpoint("192.0.2.1"), Endpoint("192.0.2.2")
STEP = 0.005  # seconds


class World:
    """
    A peer behind a path, and a clock.

    Attributes:
        mtu: Largest inner packet that arrives; 0: nothing does, not even the smallest.
        said: When the path was found to take how much.
        probes: When a probe of which size left.
    """

    def __init__(
        self, *, limit: int = 1450, mtu: int = 1450, family: int = 4, rtt: float = 0.001
    ) -> None:
        self.paths = PathMtus(itertools.count(100))
        self.mtu, self.rtt, self.now = mtu, rtt, 0.0
        self.loses: Callable[[], bool] = lambda: False
        self.said: list[tuple[float, int]] = []
        self.probes: list[tuple[float, int]] = []
        self._answers: list[tuple[float, int]] = []
        self.paths.add(A, family=family, limit=limit, now=0)
        self.paths.set_alive(A, rtt=rtt, now=0)

    @property
    def size(self) -> int | None:
        return self.paths.size(A)

    def run(self, seconds: float, *, busy: bool = True) -> None:
        self.paths.set_traffic(A, busy, now=self.now)
        for _ in range(round(seconds / STEP)):
            for at, number in [one for one in self._answers if one[0] <= self.now]:
                self._answers.remove((at, number))
                self._do(self.paths.received_reply(A, number, now=self.now))
            self._do(self.paths.tick(now=self.now))
            self.now += STEP

    def _do(self, actions: list[SendProbe | PathMtuChanged]) -> None:
        for action in actions:
            if isinstance(action, PathMtuChanged):
                self.said.append((self.now, action.size))
                continue
            self.probes.append((self.now, action.size))
            arrives = self.mtu and action.size <= max(self.mtu, 64) and not self.loses()
            if arrives:
                self._answers.append((self.now + self.rtt, action.id))


def test_most_often_one_probe_says_it() -> None:
    world = World()
    world.run(0.1)
    assert [size for _, size in world.probes] == [1450]
    assert [size for _, size in world.said] == [1450]


@pytest.mark.parametrize("mtu", [1130, 1131, 1132, 1137, 1250, 1350, 1400, 1448, 1449, 1450])
def test_the_answer_is_exact_and_soon(mtu: int) -> None:
    world = World(mtu=mtu)
    world.run(5 * PATIENCE)
    assert world.size == mtu
    assert len(world.probes) < 50


@pytest.mark.parametrize("limit", [1000, 1130, 8950, 64950])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99, 1.0])
def test_of_any_first_hop(limit: int, share: float) -> None:
    world = World(limit=limit, mtu=int(limit * share))
    world.run(8 * PATIENCE)
    assert world.size == max(world.mtu, min(BASE[4], limit))


@pytest.mark.parametrize("family", [4, 6])
def test_less_than_the_base_is_never_said(family: int) -> None:
    world = World(mtu=700, family=family)
    world.run(3)
    assert world.size == BASE[family]


@pytest.mark.parametrize("after", [3.0, 3.1, 3.2, 4.9, 5.15])
@pytest.mark.parametrize(("before", "then"), [(1450, 1350), (1350, 1250), (1350, 1131)])
def test_a_path_that_becomes_narrower_is_noticed_at_once_while_packets_flow(
    before: int, then: int, after: float
) -> None:
    world = World(mtu=before)
    world.run(after)
    world.mtu = then
    world.said.clear()
    begun = world.now
    world.run(5)
    when, first = world.said[0]
    assert first <= then  # what goes now arrives
    assert when - begun <= BUSY + 2 * PATIENCE + 4 * STEP
    assert world.size == then
    assert world.said[-1][0] - begun < BUSY + 5 * PATIENCE


def test_it_is_noticed_as_well_where_none_flowed() -> None:
    world = World()
    world.run(30, busy=False)
    world.mtu = 1350
    world.run(20, busy=False)
    assert world.size == 1450
    world.run(5 * PATIENCE)
    assert world.size == 1350


@pytest.mark.parametrize("mtu", [1300, 1400, 1450])
def test_a_path_that_becomes_wider_is_noticed(mtu: int) -> None:
    world = World(mtu=1250)
    world.run(2)
    world.mtu = mtu
    world.run(WIDER + 5 * PATIENCE)
    assert world.size == mtu


def test_a_narrow_path_is_not_made_smaller_by_looking_for_more() -> None:
    world = World(mtu=1350)
    world.run(60)
    assert {size for _, size in world.said} <= set(range(1130, 1351))
    assert world.said[-1][0] < 1
    assert world.size == 1350


def test_a_peer_that_is_away_has_no_narrow_path() -> None:
    world = World()
    world.run(2)
    world.mtu = 0
    world.run(5)
    assert world.size == 1450
    world.paths.set_silent(A)
    count = len(world.probes)
    world.run(100)
    assert len(world.probes) == count
    world.mtu = 1350
    world.paths.set_alive(A, rtt=0.001, now=world.now)
    world.run(5 * PATIENCE)
    assert world.size == 1350


def test_nothing_is_probed_before_it_was_heard() -> None:
    paths = PathMtus(itertools.count())
    paths.add(A, family=4, limit=1450, now=0)
    assert not paths.alive
    assert paths.next_tick(0) is None
    assert paths.tick(now=100) == []
    assert paths.size(A) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_losses_by_chance_do_not_last(loss: float, seed: int) -> None:
    """Some may narrow it for a moment; it is never for long, and never a search without end."""
    world = World()
    dice = random.Random(seed)
    world.loses = lambda: dice.random() < loss
    world.run(60)
    assert len(world.probes) < 60 / BUSY * (1 + 30 * loss)
    narrow = sum(
        until - since
        for (since, size), (until, _) in itertools.pairwise([*world.said, (world.now, 0)])
        if size < 1450
    )
    assert narrow < 60 * loss
    world.loses = lambda: False
    world.run(WIDER + 1)
    assert world.size == 1450


def test_a_long_way_is_no_narrow_one() -> None:
    world = World(rtt=0.6)
    world.run(60)
    ((when, size),) = world.said
    assert when == pytest.approx(0.6, abs=3 * STEP)
    assert size == 1450


def test_a_way_that_becomes_long_is_no_narrow_one() -> None:
    """As when a queue fills up: every answer is late, not only those to large probes."""
    world = World(rtt=0.01)
    world.run(5)
    world.rtt = 0.7
    world.run(20)
    assert world.size == 1450


def test_probes_are_few() -> None:
    world = World()
    world.run(600, busy=False)
    assert len(world.probes) <= 600 / IDLE + 1
    world = World(mtu=1350)
    world.run(2, busy=False)
    world.probes.clear()
    world.run(600, busy=False)
    assert len(world.probes) <= 600 / IDLE * 30


def test_with_very_many_peers_each_is_probed_more_rarely() -> None:
    world = World()
    for number in range(1000):
        world.paths.add(Endpoint("192.0.2.3", number + 1), family=4, limit=1450, now=0)
    world.run(30)
    assert len(world.probes) <= 30 * MOST / 1000 + 2


def test_unexpected_answers_change_nothing() -> None:
    paths = PathMtus(itertools.count(5))
    paths.add(A, family=4, limit=1450, now=0)
    paths.add(B, family=4, limit=1450, now=0)
    paths.set_alive(A, rtt=0.01, now=0)
    assert paths.tick(now=0) == [SendProbe(A, 5, 1450)]
    for peer, number in ((A, 6), (B, 5), (Endpoint("192.0.2.9"), 5)):
        assert paths.received_reply(peer, number, now=0) == []
    assert paths.received_reply(A, 5, now=0) == [PathMtuChanged(A, 1450)]
    assert paths.received_reply(A, 5, now=0) == []
    assert (paths.size(A), paths.size(B)) == (1450, None)


def test_who_moves_has_another_path() -> None:
    world = World(mtu=1350)
    world.run(2)
    world.paths.add(A, family=4, limit=1450, now=world.now)
    assert world.size is None
    world.paths.set_alive(A, rtt=0.001, now=world.now)
    world.run(5 * PATIENCE)
    assert world.size == 1350


def test_a_removed_peer_is_forgotten() -> None:
    world = World()
    world.run(1)
    world.paths.remove(A)
    world.paths.remove(A)
    assert world.paths.size(A) is None
    assert world.paths.next_tick(1) is None
