"""Films show whole episodes, from the first moment to the last, and say why when they cannot."""

from __future__ import annotations

import base64
import io
from functools import partial

import gymnasium
import numpy as np
import pytest
from PIL import Image

from habitus.core.errors import CheckpointError, HabitusError, SpaceMismatch
from habitus.report.film import COLUMNS, FRAMES, Moment, Reel, film
from habitus.report.page import write_report


class Fader(gymnasium.Env):
    """A world that brightens with every step, ends after `length` of them, and pays 1 each."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, render_mode=None, length=30, broken=False):
        self.render_mode, self.length, self.broken = render_mode, length, broken

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert action.shape == (1,)
        self.time += 1
        return np.zeros(2, np.float32), 1.0, self.time == self.length, False, {}

    def render(self):
        if self.broken:
            raise RuntimeError("no display")
        return np.full((20, 40, 3), min(8 * self.time, 255), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def worlds():
    made = {"Fader-v0": {}, "Broken-v0": {"broken": True}}
    for name, settings in made.items():
        gymnasium.register(name, partial(Fader, **settings))
    yield
    for name in made:
        del gymnasium.registry[name]


def pixels(sheet: str) -> np.ndarray:
    head, _, data = sheet.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@pytest.mark.parametrize("length", [1, 7, 120, 121, 500, 1000])
def test_a_reel_keeps_evenly_spaced_moments_and_both_ends(length):
    drawn = []

    def draw(time):
        drawn.append(time)
        return np.full((1, 1, 3), time % 256, np.uint8)

    reel = Reel(Moment(partial(draw, time), 2.0 if time else 0.0, time == length) for time in range(length + 1))
    assert reel.returned == 2.0 * length and reel.length == length
    assert len(reel.frames) <= 2 * FRAMES + 1 and len(drawn) < 10 * FRAMES
    shown = [int(frame[0, 0, 0]) for frame in reel.frames]
    assert shown[0] == 0 and shown[-1] == length % 256
    assert len({(b - a) % 256 for a, b in zip(shown[:-2], shown[1:-1], strict=True)}) <= 1
    assert len(shown) > min(FRAMES, length)


def test_a_film_of_a_gymnasium_world(save_policy):
    shown = film(save_policy("Fader-v0"), "Fader-v0", 0)
    assert (shown.returned, shown.length) == (30.0, 30)
    assert (shown.width, shown.height, shown.columns, shown.rows) == (40, 20, COLUMNS, 4)
    sheet = pixels(shown.sheet)
    assert sheet.shape == (80, 320, 3)
    first_row = sheet[10, 20::40, 0]
    np.testing.assert_allclose(first_row, 8 * np.arange(8), atol=2)
    np.testing.assert_allclose(sheet[70, 20::40, 0][6:], 240, atol=2)


@pytest.mark.parametrize("world", ["pendulum", "mountaincar-continuous"])
def test_a_film_of_a_built_in_world(save_policy, world):
    policy = save_policy(world)
    shown = film(policy, world, 0)
    assert shown.length in (200, 999) and shown.returned < 0
    sheet = pixels(shown.sheet)
    assert sheet.shape == (shown.rows * shown.height, shown.columns * shown.width, 3)
    first, last = sheet[: shown.height, : shown.width], sheet[-shown.height :, -shown.width :]
    assert (first != last).any()
    assert film(policy, world, 0) == shown != film(policy, world, 1)


def test_what_cannot_be_filmed_says_why(save_policy, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        film(tmp_path / "none", "pendulum", 0)
    policy = save_policy("Broken-v0")
    with pytest.raises(
        HabitusError, match=r"Broken-v0 could not be drawn on this machine \(RuntimeError: no display\)"
    ):
        film(policy, "Broken-v0", 0)
    with pytest.raises(SpaceMismatch):
        film(policy, "pendulum", 0)
    with pytest.raises(HabitusError, match="gymnax"):
        film(policy, "gymnax:CartPole-v1", 0)


def test_the_page_plays_films_and_gives_the_reason_where_there_is_none(run_folder, tmp_path):
    runs = [run_folder("a", policies=True), run_folder("b", env="Broken-v0", policies=True)]
    text = write_report(runs, tmp_path / "r.html").read_text()
    assert text.count("data:image/webp;base64,") == 1 and text.count('type="checkbox"') == 1
    assert "no episode to show: Broken-v0 could not be drawn" in text
    assert "data:image" not in write_report(runs, tmp_path / "r.html", films=False).read_text()
