import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

os.environ["SDL_VIDEODRIVER"] = "dummy"

import pygame

from farworld.actions import Action, ActionVocabulary
from farworld.checkpoint import Context, bundled_worlds, config_from_json, resolve
from farworld.cli import app
from farworld.play.cli import prepare_environment
from farworld.play.hud import BAR_HEIGHT
from farworld.play.keys import Keys
from farworld.play.player import WorldPlayer, open_player
from farworld.play.script import Script, parse_script, read_script
from farworld.play.window import Window

ROOT = Path(__file__).resolve().parent.parent
SIDE = 16
VOCABULARY = ActionVocabulary(
    (
        Action(name="noop"),
        Action(name="forward", keys=("up",)),
        Action(name="turn_left", keys=("left",)),
        Action(name="turn_right", keys=("right",)),
        Action(name="forward_left", keys=("up", "left")),
        Action(name="jump", keys=("space",)),
    )
)
NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, JUMP = range(6)
WITHOUT_NOOP = ActionVocabulary(VOCABULARY.actions[1:])
CODES = {"up": pygame.K_UP, "left": pygame.K_LEFT, "right": pygame.K_RIGHT, "space": pygame.K_SPACE}


class LastActionRollout:
    """A world whose next frame shows the last action and nothing else."""

    num_steps = 1
    context_frames = 8
    context_in_use = 1
    snapshot_bytes = 1000

    def __init__(self, on_step=lambda: None):
        self.actions = []
        self.on_step = on_step

    def prime(self, frames, actions, seed=0):
        """Start again."""
        self.actions.clear()

    def step(self, action):
        """The next frame."""
        self.actions.append(action)
        self.on_step()
        return shows(action)[None]

    def snapshot(self):
        """What was done."""
        return tuple(self.actions)

    def restore(self, snapshot):
        """Go back to that."""
        self.actions[:] = snapshot


def shows(action):
    """The frame that an action produces."""
    return np.full((SIDE, SIDE, 3), 40 * (action + 1), np.uint8)


def make_player(vocabulary=VOCABULARY, *, frames_per_second=50.0, num_starts=3, rollout=None):
    start = Context(np.zeros((1, SIDE, SIDE, 3), np.uint8), np.zeros(0, np.int64))
    config = SimpleNamespace(
        name="last action", vocabulary=vocabulary, frame_height=SIDE, frame_width=SIDE,
        frames_per_second=frames_per_second,
    )  # fmt: skip
    world = SimpleNamespace(config=config, contexts=[start] * num_starts, path=Path("last-action"))
    return WorldPlayer(world, rollout or LastActionRollout())


@pytest.fixture
def window():
    with Window(make_player(), size=64) as window:
        yield window


def post(*keys, up=False):
    for key in keys:
        code = CODES.get(key) or pygame.key.key_code(key)
        pygame.event.post(pygame.event.Event(pygame.KEYUP if up else pygame.KEYDOWN, key=code))


def next_action(window):
    """Handle events and show a frame, as the loop does; the action that the picture on the screen shows."""
    window.handle_events()
    window.show_next_frame()
    return window._screen.get_at((window._screen.get_width() // 2, 60)).r // 40 - 1  # under any message


def test_the_key_pressed_while_a_frame_shows_decides_the_next_frame():
    """The field's commonest mistake is a lag of one frame more."""
    player = make_player()
    pressed = ["up", None, "left", "right", "right", None, "up"]
    wanted = [FORWARD, NOOP, LEFT, RIGHT, RIGHT, NOOP, FORWARD]
    for key, action in zip(pressed, wanted, strict=True):
        player.keys.hold([key] if key else [])
        player.tick()
        assert np.array_equal(player.frame, shows(action))


def test_a_key_event_reaches_the_screen_with_the_next_frame(window):
    """The same through pygame: event in, pixels out."""
    assert next_action(window) == NOOP
    post("left")
    assert next_action(window) == LEFT
    assert next_action(window) == LEFT
    post("left", up=True)
    post("right")
    assert next_action(window) == RIGHT
    post("right", up=True)
    assert next_action(window) == NOOP


def test_a_tap_between_two_frames_counts_for_one(window):
    post("left")
    post("left", up=True)
    assert [next_action(window) for _ in range(2)] == [LEFT, NOOP]


def test_two_taps_between_two_frames_both_count_in_order(window):
    post("right")
    post("right", up=True)
    post("space")
    post("space", up=True)
    assert [next_action(window) for _ in range(3)] == [RIGHT, JUMP, NOOP]


def test_the_newest_key_rules_over_a_held_one():
    """Who walks and presses the jump key jumps, though walking has the lower index."""
    keys = Keys(VOCABULARY)
    keys.press("up")
    assert keys.take_action() == FORWARD
    keys.press("space")
    assert [keys.take_action() for _ in range(2)] == [JUMP, JUMP]
    keys.release("space")
    assert keys.take_action() == FORWARD
    keys.press("left")
    assert keys.take_action() == FORWARD_LEFT
    keys.press("right")
    assert keys.take_action() == RIGHT


def test_keys_of_no_action_are_ignored_and_do_not_come_back():
    keys = Keys(ActionVocabulary((Action(name="idle"), Action(name="run", keys=("up", "left")))))
    keys.press("f12")
    keys.press("left")
    keys.release("left")
    assert keys.take_action() == 0
    keys.press("up")
    assert keys.take_action() == 0


def test_a_world_without_idle_action_holds_still_while_nothing_is_pressed():
    player = make_player(WITHOUT_NOOP)
    assert not player.tick()
    assert player.rollout.actions == [] and player.num_frames == 0 and player.held_still == 1
    player.keys.press("up")
    assert player.tick()
    before = player.frame
    player.keys.release("up")
    assert not player.tick()
    assert player.frame is before and player.action_name == "holding still"


def test_losing_the_focus_releases_the_keys(window):
    post("up")
    assert next_action(window) == FORWARD
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    assert next_action(window) == NOOP


def test_pause_stops_the_world_and_n_makes_one_step(window):
    post("p")
    window.handle_events()
    assert window.paused
    post("left")
    post("left", up=True)
    post("up")
    post("n")
    window.handle_events()
    assert window.player.rollout.actions == [FORWARD]
    post("p")
    window.handle_events()
    post("n")
    window.handle_events()
    assert not window.paused and window.player.rollout.actions == [FORWARD]


def test_reset_tab_hide_and_help_keys(window):
    next_action(window)
    post("r")
    window.handle_events()
    assert window.player.num_frames == 0
    post("tab", "h", "f1")
    window.handle_events()
    window.draw()
    assert (window.player.start, window.show_hud, window.show_help) == (1, False, True)
    post("tab", "tab")
    window.handle_events()
    assert window.player.start == 0


def test_a_message_vanishes_also_where_every_frame_is_late(monkeypatch):
    """It used to vanish only while there was time left to wait, so on a slow machine it stayed for good."""
    shown = []

    def on_step():
        shown.append(window._message)
        time.sleep(0.02)
        if len(shown) == 10:
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    monkeypatch.setattr("farworld.play.window.MESSAGE_SECONDS", 0.07)
    with Window(make_player(frames_per_second=1000.0, rollout=LastActionRollout(on_step)), size=64) as window:
        post("r")
        window.run()
        window.draw()
    assert shown[0] == "from the start" and shown[-1] == ""


def test_a_message_vanishes_while_the_world_waits(window, monkeypatch):
    monkeypatch.setattr("farworld.play.window.MESSAGE_SECONDS", 0.05)
    post("r")
    window.handle_events()
    assert window._message == "from the start"
    for _ in range(2):  # the first wait may draw before the time is over, the second begins after it
        assert window._wait_until(time.perf_counter() + 0.1)
    assert window._message == ""


def test_the_rewind_key_goes_back_frame_by_frame_and_play_goes_on_from_there(window):
    """A key that is held over it counts from the first new frame, a tap while it goes back does not."""
    post("left")
    assert [next_action(window) for _ in range(2)] == [LEFT, LEFT]
    post("left", up=True)
    post("space")
    assert next_action(window) == JUMP
    post("space", up=True)
    assert next_action(window) == NOOP
    post("backspace")
    assert next_action(window) == JUMP
    post("right")
    post("right", up=True)
    post("up")
    assert next_action(window) == LEFT and window._rewind_text == "« 0.0 s"
    assert window.player.rollout.actions == [LEFT, LEFT] and window.player.num_frames == 2
    post("backspace", up=True)
    assert [next_action(window) for _ in range(2)] == [FORWARD, FORWARD]
    assert window.player.rollout.actions == [LEFT, LEFT, FORWARD, FORWARD] and window.player.num_frames == 4


def test_a_tap_of_the_rewind_key_goes_one_frame_back_also_while_paused(window):
    post("left")
    assert [next_action(window) for _ in range(3)] == [LEFT] * 3
    post("p", "backspace")
    post("backspace", up=True)
    window.handle_events()
    assert window._rewinding
    window.show_next_frame()
    assert window.paused and not window._rewinding and window.player.num_frames == 2
    post("p", "backspace")  # held, and lost with the focus
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    assert next_action(window) == NOOP


def test_rewinding_keeps_the_pace_and_stops_at_the_start():
    rollout = LastActionRollout()
    with Window(make_player(frames_per_second=50.0, rollout=rollout), size=64) as window:
        for _ in range(4):
            next_action(window)
        rewind, times = window.player.rewind, []

        def timed():
            times.append(time.perf_counter())
            if len(times) == 7:
                pygame.event.post(pygame.event.Event(pygame.QUIT))
            return rewind()

        window.player.rewind = timed
        post("backspace")
        window.run()
        assert rollout.actions == [] and window.player.num_frames == 0
        assert window._rewind_text == "« 0.1 s, the start" and window.player.num_rewound == 4
        assert times[-1] - times[0] >= 5 / 50  # the first may be late, and the second then come at once
        post("r")
        window.handle_events()
        assert not window._rewinding and window.player.news == "from the start"


@pytest.mark.parametrize(("seconds", "num_bytes", "remembered"), [(0.1, 2**20, 5), (9.0, 7 * 1768, 7)])
def test_how_far_back_is_bounded_by_time_and_by_memory(monkeypatch, seconds, num_bytes, remembered):
    """A moment is a snapshot of 1000 bytes and a picture of 768, at 50 a second."""
    monkeypatch.setattr("farworld.play.player.REWIND_SECONDS", seconds)
    monkeypatch.setattr("farworld.play.player.REWIND_BYTES", num_bytes)
    player = make_player()
    for _ in range(20):
        player.tick()
    assert [player.rewind() for _ in range(9)] == [True] * remembered + [False] * (9 - remembered)
    assert player.news == "no further" and player.num_frames == 20 - remembered
    player.reset()
    assert not player.rewind() and player.news == "the start"


@pytest.mark.parametrize("key", ["escape", "q"])
def test_escape_and_q_quit(window, key):
    post(key)
    window.run()
    assert window.player.num_frames == 0


def test_a_key_that_the_world_uses_belongs_to_the_world():
    vocabulary = ActionVocabulary((Action(name="noop"), Action(name="quaff", keys=("q",))))
    with Window(make_player(vocabulary), size=64) as window:
        post("q")
        assert next_action(window) == 1 and window.running
        assert ("escape", "quit") in window._help_rows()


def test_the_window_keeps_the_pace_of_the_world():
    """Never faster; and a frame that took too long is not made up for by a burst."""
    times = []

    def on_step():
        times.append(time.perf_counter())
        if len(times) == 3:
            time.sleep(0.2)
        if len(times) == 6:
            pygame.event.post(pygame.event.Event(pygame.QUIT))

    rollout = LastActionRollout(on_step)
    with Window(make_player(frames_per_second=40.0, rollout=rollout), size=64) as window:
        times.append(time.perf_counter())
        window.run()
    assert len(rollout.actions) == 5
    assert times[-1] - times[0] >= 3 / 40 + 0.2
    assert times[4] - times[3] >= 0.5 / 40 and times[5] - times[4] >= 0.5 / 40


@pytest.mark.parametrize("size", [(16, 16 + BAR_HEIGHT), (100, 90), (333, 201), (20, 12)])
def test_the_picture_is_enlarged_by_a_whole_number_in_any_window(window, size):
    """Pixels stay square, and neither the bar nor the help page fails in a window too small for them."""
    window._screen = pygame.display.set_mode(size, pygame.RESIZABLE)
    frame = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    window.player.frame = frame
    window.draw()
    room = size[1] - BAR_HEIGHT
    scale = max(1, min(size[0] // SIDE, room // SIDE))
    if room >= SIDE:
        left, top = (size[0] - SIDE * scale) // 2, (room - SIDE * scale) // 2
        shown = pygame.surfarray.array3d(window._screen).swapaxes(0, 1)
        assert np.array_equal(
            shown[top : top + SIDE * scale, left : left + SIDE * scale], frame.repeat(scale, 0).repeat(scale, 1)
        )
    window.show_help = True
    window.draw()


def test_a_script_presses_what_it_says_and_nothing_after_its_end():
    script = parse_script("# a comment\nup x2\n\nup+left\n- x 1  # rest\naction:turn_right x2\n", VOCABULARY)
    player = make_player()
    from farworld.play.headless import play_script

    assert script.num_frames == 6
    play_script(player, script, 8)
    assert player.rollout.actions == [FORWARD, FORWARD, FORWARD_LEFT, NOOP, RIGHT, RIGHT, NOOP, NOOP]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("up\nupp x2", "line 2: unknown key 'upp'.*up, left, right, space"),
        ("up x0", "line 1: a count must be 1 or more"),
        ("\n\naction:fly", "line 3: unknown action 'fly'"),
        ("up left", "line 1: unknown key 'up left'"),
        ("x3", "line 1: unknown key 'x3'"),
    ],
)
def test_a_wrong_line_of_a_script_is_named(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_script(text, VOCABULARY)


def test_a_script_of_a_windows_editor_is_read(tmp_path):
    """It begins with a byte order mark."""
    (tmp_path / "keys.txt").write_text("up x2\n", encoding="utf-8-sig")
    assert read_script(tmp_path / "keys.txt", VOCABULARY) == parse_script("up x2", VOCABULARY)
    (tmp_path / "keys.txt").write_text("up x2\n", encoding="utf-16")
    with pytest.raises(ValueError, match="no text file in UTF-8"):
        read_script(tmp_path / "keys.txt", VOCABULARY)


def test_an_empty_script_lasts_no_frames():
    assert parse_script("# nothing\n", VOCABULARY) == Script()


def test_same_start_seed_and_keys_give_the_same_frames(tiny_world_path):
    """Also after a reset, and past the length of the context."""

    def play(player):
        frames = []
        for i in range(15):
            player.keys.hold([["up"], ["left"], []][i % 3])
            player.tick()
            frames.append(player.frame)
        return np.stack(frames)

    player = open_player(tiny_world_path, seed=3, start=1, device="cpu")
    first = play(player)
    player.reset()
    assert np.array_equal(play(player), first)
    assert np.array_equal(play(open_player(tiny_world_path, seed=3, start=1, device="cpu")), first)
    assert not np.array_equal(play(open_player(tiny_world_path, seed=4, start=1, device="cpu")), first)


@pytest.mark.parametrize("layout", ["sliding", "anchored"])
def test_a_rewound_world_shows_the_very_frames_again_and_dreams_them_again(tiny_world_path, layout):
    """The same keys after a rewind give the same frames, other keys others; across the length of the context, too."""
    player = open_player(tiny_world_path, seed=3, layout=layout, device="cpu")

    def play(num_frames, key=None):
        frames = []
        for i in range(num_frames):
            player.keys.hold([key or ["up", "left", "right"][i % 3]])
            player.tick()
            frames.append(player.frame.copy())
        return frames

    start = player.frame.copy()
    first = play(12)
    later = play(6)
    for number in range(17, 11, -1):
        assert np.array_equal(player.frame, later[number - 12])
        assert player.rewind()
    assert np.array_equal(player.frame, first[-1]) and player.num_frames == 12
    assert player.action == [1, 2, 3][11 % 3]
    assert not np.array_equal(play(6, "up")[-1], later[-1])
    for _ in range(6):
        player.rewind()
    assert np.array_equal(play(6), later)
    shown = [player.frame.copy() for _ in iter(player.rewind, False)]
    assert np.array_equal(shown[::-1], [start, *first, *later][:-1])
    assert np.array_equal(play(12), first)


def test_a_script_rewinds_and_the_video_shows_it(tiny_world_path, tmp_path, capfd):
    (tmp_path / "keys.txt").write_text("up x4\nleft x2\nbackspace x2\nleft x2\n")
    frames = []
    script = parse_script((tmp_path / "keys.txt").read_text(), VOCABULARY)
    assert script.num_frames == 10 and [entry.rewind for entry in script.per_frame(10)].count(True) == 2
    from farworld.play.headless import play_script

    player = open_player(tiny_world_path, device="cpu")
    play_script(player, script, 10, SimpleNamespace(write=lambda frame: frames.append(frame.copy())))
    assert np.array_equal(frames[6:], [frames[4], frames[3], frames[4], frames[5]])
    arguments = ["play", "--ckpt", tiny_world_path, "--headless", "--script", tmp_path / "keys.txt",
                 "--save", tmp_path / "out.mp4", "--device", "cpu", "--json"]  # fmt: skip
    app([str(argument) for argument in arguments], result_action="return_value")
    report = json.loads(capfd.readouterr().out)
    assert (report["frames"], report["rewound"], report["held_still"]) == (10, 2, 0)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert len(list(container.decode(video=0))) == 10


def test_a_gif_holds_the_frames_at_their_pace(tmp_path):
    """A GIF counts in hundredths of a second; a frame of 13.3 has to be 13 or 14, and three of them 40."""
    from PIL import Image, ImageSequence

    from farworld.play.headless import open_video, play_script

    player, shown = make_player(frames_per_second=7.5), []
    script = parse_script("up\nleft\nspace\nbackspace x2\n- x4\n", VOCABULARY)
    with open_video(tmp_path / "new" / "out.gif", player) as video:
        play_script(player, script, script.num_frames, SimpleNamespace(
            write=lambda frame: (video.write(frame), shown.append(frame))))  # fmt: skip
        assert not (tmp_path / "new").exists()  # the colours of all frames are chosen at the end
    with Image.open(tmp_path / "new" / "out.gif") as gif:
        assert gif.size == (256, 256) and gif.info["loop"] == 0
        pictures = [(np.array(each.convert("RGB")), each.info["duration"]) for each in ImageSequence.Iterator(gif)]
    assert [duration for _, duration in pictures[:5]] == [130, 140, 130, 130, 140]
    assert sum(duration for _, duration in pictures) == 1200  # the last four look alike, and may be one picture
    for (picture, _), frame in zip(pictures, shown, strict=False):
        assert np.abs(picture.astype(int) - frame[0, 0]).max() <= 1
    with open_video(tmp_path / "none.gif", player):
        pass
    assert not (tmp_path / "none.gif").exists()
    with (
        pytest.raises(ValueError, match="50 frames a second at most, got 60.0"),
        open_video(tmp_path / "out.gif", make_player(frames_per_second=60.0)),
    ):
        pass


@pytest.mark.parametrize("name", ["dmlab", "minecraft"])
def test_the_keys_of_the_gifs_are_those_of_the_bundled_worlds(name):
    """`make gifs` must also work with the next weights; the ways end where they began, so that the GIF has no seam."""
    if name not in bundled_worlds():
        pytest.skip(f"the world {name} is not bundled here")
    config = config_from_json(json.loads((resolve(name) / "config.json").read_text()))
    script = read_script(ROOT / "docs" / f"{name}.txt", config.vocabulary)
    assert 5 <= script.num_frames / config.frames_per_second <= 8
    steps = sum(bool(entry.keys) for entry in script.per_frame(script.num_frames))
    assert steps == sum(entry.rewind for entry in script.per_frame(script.num_frames)) > 0
    assert (ROOT / "docs" / f"{name}.gif").stat().st_size < 1_500_000


def test_backspace_belongs_to_the_world_that_uses_it():
    vocabulary = ActionVocabulary((Action(name="noop"), Action(name="erase", keys=("backspace",))))
    assert parse_script("backspace", vocabulary).entries[0].keys == ("backspace",)
    with Window(make_player(vocabulary), size=64) as window:
        post("backspace")
        assert [next_action(window) for _ in range(2)] == [1, 1]
        assert ("backspace", "rewind") not in window._help_rows()


def test_a_start_that_is_not_there_is_an_error(tiny_world_path):
    with pytest.raises(ValueError, match=r"start must be in \[0, 1\], got 2"):
        open_player(tiny_world_path, start=2, device="cpu")


def test_headless_play_prints_one_json_object_and_writes_the_video(tiny_world_path, tmp_path, capfd):
    (tmp_path / "keys.txt").write_text("up x4\nup+left x2\n")
    arguments = ["play", "--ckpt", tiny_world_path, "--headless", "--script", tmp_path / "keys.txt", "--frames", "9",
                 "--save", tmp_path / "out.mp4", "--seed", "7", "--device", "cpu", "--json"]  # fmt: skip
    app([str(argument) for argument in arguments], result_action="return_value")
    report = json.loads(capfd.readouterr().out)
    assert report["frames"] == 9 and report["seed"] == 7 and report["steps"] == 1 and report["context_frames"] == 12
    assert report["actions"] == {"noop": 3, "forward": 4, "turn_left": 0, "turn_right": 0, "forward_left": 2}
    with av.open(str(tmp_path / "out.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 20
    assert len(pictures) == 9 and min(pictures[0].shape[:2]) == 256


def test_the_video_of_a_window_holds_every_frame_that_was_shown(tmp_path):
    from farworld.play.headless import open_video

    player = make_player()
    with open_video(tmp_path / "out.mp4", player) as video, Window(player, size=64, video=video) as window:
        post("left")
        shown = [next_action(window) for _ in range(5)]
    with av.open(str(tmp_path / "out.mp4")) as container:
        levels = [frame.to_ndarray(format="rgb24")[128, 128, 0] for frame in container.decode(video=0)]
    assert [round(level / 40) - 1 for level in levels] == shown == [LEFT] * 5


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--headless"], "--headless needs --script"),
        (["--script", "keys.txt"], "go with --headless"),
        (["--headless", "--frames", "0"], "--frames must be 1 or more, got 0"),
        (["--headless", "--frames", "3", "--save", "out.avi"], "ends in .mp4 or .gif, got out.avi"),
        (["--headless", "--script", "nowhere.txt"], "no script .*nowhere.txt"),
        (["--headless", "--frames", "1", "--guidance", "nan"], "guidance_scale must not be negative"),
    ],
)
def test_a_wrong_option_is_an_error_that_says_what_to_do(tiny_world_path, arguments, complaint):
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        app(["play", "--ckpt", str(tiny_world_path), "--device", "cpu", *arguments], result_action="return_value")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems always have a display")
def test_without_a_display_one_line_names_headless(tiny_world_path):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run(
        [sys.executable, "-m", "farworld", "play", "--ckpt", str(tiny_world_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "no display" in result.stderr and "--headless" in result.stderr


def test_help_describes_the_script(capsys):
    app(["play", "--help"], result_action="return_value")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in ("up x10", "up+left x3", "- x5", "action:forward x4", "backspace x5", "Backspace, held, rewinds"):
        assert part in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_threads_spin_a_little_unless_the_user_says_otherwise(given, expected, monkeypatch):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    prepare_environment()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected
