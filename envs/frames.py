"""Frames of one size out of an environment: from its observation, a part of it, or what it renders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import gymnasium
import numpy as np

DEFAULT_SIZE = 64  # pixels a side, for frames whose own size does not suit the autoencoder
SIZE_MULTIPLE = 16  # what the autoencoder needs height and width to be multiples of
Fit = Literal["crop", "stretch"]
NO_FRAME = (
    "farworld/no_frame"  # in the info of a step: there is no picture any more, as after some engines' last action
)

# Of several pictures in an observation these come first, and then the largest: VizDoom's map and MineRL's second eye
# are pictures too.
_PICTURE_KEYS = ("screen", "pov", "rgb", "image", "pixels", "frame", "RGB_INTERLEAVED", "RGB")


class FrameError(ValueError):
    """An environment's frames are not what can be recorded."""


class FrameSource:
    """Takes frames of one size out of an environment.

    A frame keeps its own size where that suits the autoencoder, both sides multiples of 16, and no other is wanted.
    Else it becomes a square: its centre is cut out, so that shapes keep their proportions (or, with `stretch`, all of
    it is squeezed in), and resized by area.

    Attributes:
        obs_key: the part of the observation that holds the picture; empty if it comes from elsewhere.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        name: str,
        size: int | None = None,
        obs_key: str = "",
        render: bool = False,
        fit: Fit = "crop",
    ) -> None:
        """Find the picture.

        Args:
            env: the environment.
            name: of the environment, for messages.
            size: height and width of the frames in pixels; None takes the environment's where it suits.
            obs_key: the part of the observation to take, keys inside each other with / between; empty looks for one.
            render: take what the environment renders, whatever it observes.
            fit: how a frame that is no square becomes one.

        Raises:
            FrameError: there is no such part, or no picture at all.
        """
        self.obs_key = ""
        self._env = env
        self._name = f"environment {name}"
        self._size = size
        self._fit = fit
        self._found: tuple[int, ...] | None = None
        pictures = dict(_pictures(env.observation_space))
        if render:
            self._check_renders(f"--render needs an environment that renders, and {self._name} does not")
        elif obs_key:
            _check_key(env.observation_space, obs_key)
            self.obs_key = obs_key
        elif "" not in pictures:
            self.obs_key = _best(pictures)
            if not pictures:
                self._check_renders(
                    f"{self._name} shows no pixels: its observations are {env.observation_space} and it does not "
                    "render; let it heed render_mode='rgb_array', or observe uint8 (height, width, 3)"
                )
        self._rendered = render or not (obs_key or pictures)
        self._where = "render()" if self._rendered else f"the observation's {self.obs_key}" if self.obs_key else (
            "the observation"
        )  # fmt: skip

    def _check_renders(self, complaint: str) -> None:
        if self._env.render_mode != "rgb_array":
            raise FrameError(complaint)

    def __call__(self, observation: Any) -> np.ndarray:
        """The frame that belongs to an observation: (H, W, 3), uint8.

        Raises:
            FrameError: no such picture, or one of another size than before.
        """
        frame: Any
        if self._rendered:
            frame = self._env.render()
        else:
            frame = _part(observation, self.obs_key) if self.obs_key else observation
        self._check(frame)
        height, width = frame.shape[:2]
        if self._size is None and height % SIZE_MULTIPLE == 0 and width % SIZE_MULTIPLE == 0:
            return frame
        return fit_square(frame, self._size or DEFAULT_SIZE, self._fit)

    def _check(self, frame: Any) -> None:
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise FrameError(
                f"expected frames as uint8 (height, width, 3), {self._where} of {self._name} gave {_what(frame)}"
            )
        if self._found not in (None, frame.shape):
            raise FrameError(
                f"frames must keep their size, {self._where} of {self._name}: expected {self._found}, got {frame.shape}"
            )
        self._found = frame.shape


def fit_square(frame: np.ndarray, size: int, fit: Fit = "crop") -> np.ndarray:
    """A frame as a square of `size` pixels, resized by area: (size, size, 3).

    Args:
        frame: (H, W, 3), uint8.
        size: the square's side.
        fit: `crop` takes the largest square in the middle, `stretch` all of the frame.
    """
    height, width = frame.shape[:2]
    if fit == "crop" and height != width:
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        frame = frame[top : top + side, left : left + side]
    if frame.shape[:2] == (size, size):
        return frame
    try:
        import cv2
    except (ImportError, OSError) as error:
        raise ImportError(
            f"frames of {height}x{width} are resized to {size}x{size} with OpenCV, which cannot be "
            f"loaded ({error}); pip install opencv-python, and if it is there, install the system's libGL "
            "(Debian and Ubuntu: apt install libgl1)"
        ) from error
    return cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)


def _what(frame: Any) -> str:
    """What an environment gave for a frame, and what is wrong with it."""
    if frame is None:
        return "None"
    if not isinstance(frame, np.ndarray):
        length = f" of {len(frame)}" if isinstance(frame, (list, tuple, dict)) else ""
        return f"a {type(frame).__name__}{length}"
    kind = f"{frame.dtype} {frame.shape}"
    if frame.ndim == 4:
        return f"{kind}, a batch of frames"
    if frame.ndim == 2 or frame.ndim == 3 and frame.shape[2] == 1:
        return f"{kind}, grey without colours"
    if frame.ndim == 3 and frame.shape[2] == 4:
        return f"{kind}, with a fourth channel"
    if frame.ndim == 3 and frame.shape[0] in (1, 3, 4) and frame.shape[2] != 3:
        return f"{kind}, channels first"
    return kind


def _is_picture(space: gymnasium.Space) -> bool:
    return isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)


def _pictures(space: gymnasium.Space, path: str = "") -> Iterator[tuple[str, gymnasium.Space]]:
    """The pictures among the parts of an observation, by key."""
    if _is_picture(space):
        yield path, space
    for key, part in _inner(space):
        yield from _pictures(part, f"{path}/{key}" if path else key)


def _inner(space: gymnasium.Space) -> list[tuple[str, gymnasium.Space]]:
    if isinstance(space, gymnasium.spaces.Dict):
        return [(str(key), part) for key, part in space.spaces.items()]
    if isinstance(space, gymnasium.spaces.Tuple):
        return [(str(place), part) for place, part in enumerate(space.spaces)]
    return []


def _best(pictures: dict[str, gymnasium.Space]) -> str:
    def rank(key: str) -> tuple[int, int]:
        name = key.rpartition("/")[2]
        known = _PICTURE_KEYS.index(name) if name in _PICTURE_KEYS else len(_PICTURE_KEYS)
        height, width, _ = pictures[key].shape  # type: ignore[misc]
        return known, -height * width

    return min(pictures, key=rank, default="")


def _check_key(space: gymnasium.Space, key: str) -> None:
    part, path = space, ""
    for name in key.split("/"):
        inner = dict(_inner(part))
        if name not in inner:
            where = f"{path} of the observation" if path else "the observation"
            found = ", ".join(f"{key} {value}" for key, value in inner.items()) or f"no parts, it is {part}"
            raise FrameError(f"--obs-key {key}: {where} has {found}")
        part, path = inner[name], f"{path}/{name}" if path else name


def _part(observation: Any, key: str) -> Any:
    for name in key.split("/"):
        observation = observation[int(name) if isinstance(observation, (tuple, list)) else name]
    return observation
