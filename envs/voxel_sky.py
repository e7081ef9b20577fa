"""The time of day: where the sun is, what colors the sky has and how bright it makes the land."""

from __future__ import annotations

import functools
import math

import numpy as np

from farworld.envs.voxel_light import MAX_LIGHT

TIMES = {"dawn": 0.02, "noon": 0.25, "dusk": 0.48, "night": 0.75}  # shares of a day that begins at sunrise
FIRST_SUN = (0.74, 0.56, 0.37)  # roughly a unit vector; where the sun stands without a day cycle
SUN_PATH = 0.45  # how far south of the zenith the sun passes, as a slope

# Colors of the sky, red, green and blue from 0 to 255.
DAY_ZENITH, DAY_HORIZON = np.array((112.0, 160.0, 238.0)), np.array((190.0, 214.0, 245.0))
NIGHT_ZENITH, NIGHT_HORIZON = np.array((7.0, 9.0, 22.0)), np.array((20.0, 25.0, 46.0))
DUSK_HORIZON = np.array((214.0, 168.0, 152.0))
GLOW = np.array((252.0, 142.0, 62.0))  # around a low sun
NIGHT_LIGHT = 0.2  # of daylight
NIGHT_TINT, DUSK_TINT = np.array((0.78, 0.9, 1.22)), np.array((1.1, 0.96, 0.86))

# Places in the array that `Daylight.sky` is, for the renderer.
ZENITH, HORIZON, SUN, GLOW_COLOR, GLOW_SHARE, STARS, CLOUD, LAND_TINT = 0, 3, 6, 9, 12, 13, 14, 17
SKY_LENGTH = 20


class Daylight:
    """The sky and the light at one time.

    Attributes:
        sky: (SKY_LENGTH,) float64: colors of zenith and horizon, direction of the sun, color and strength of its
            glow, visibility of the stars, color of the clouds, and the tint of the land.
        brightness: (256,) float32 brightness for each value of `World.light`.
        strength: of the daylight, 1 by day.
    """

    def __init__(self, sky: np.ndarray, strength: float, floor: float, power: float) -> None:
        self.sky = sky
        self.strength = strength
        levels = np.arange(MAX_LIGHT + 1) / MAX_LIGHT
        curve = floor + (1.0 - floor) * (levels * np.sqrt(levels) if power == 1.5 else levels**power)
        daylight = floor + (curve - floor) * strength
        table = np.maximum(daylight[None, :], curve[:, None])  # [lamp, sky]
        self.brightness = table.reshape(-1).astype(np.float32)


@functools.cache
def frozen_day(floor: float, power: float) -> Daylight:
    """Broad day without a time."""
    sky = np.zeros(SKY_LENGTH)
    sky[ZENITH : ZENITH + 3], sky[HORIZON : HORIZON + 3], sky[SUN : SUN + 3] = DAY_ZENITH, DAY_HORIZON, FIRST_SUN
    sky[CLOUD : CLOUD + 3], sky[LAND_TINT : LAND_TINT + 3] = (250.0, 251.0, 253.0), 1.0
    return Daylight(sky, 1.0, floor, power)


@functools.lru_cache(maxsize=4096)
def daylight_at(time: float, floor: float, power: float) -> Daylight:
    """The light at a time, in days since a sunrise."""
    angle = math.tau * (time % 1.0)
    sun = np.array((math.cos(angle), math.sin(angle), SUN_PATH * math.sin(angle) + 0.05))
    sun /= np.linalg.norm(sun)
    altitude = float(sun[1])
    day = float(np.clip(0.5 + 2.2 * altitude, 0.0, 1.0))
    day = day * day * (3.0 - 2.0 * day)
    dusk = max(0.0, 1.0 - abs(altitude) / 0.36)
    sky = np.zeros(SKY_LENGTH)
    sky[ZENITH : ZENITH + 3] = NIGHT_ZENITH + (DAY_ZENITH - NIGHT_ZENITH) * day
    horizon = NIGHT_HORIZON + (DAY_HORIZON - NIGHT_HORIZON) * day
    sky[HORIZON : HORIZON + 3] = horizon + (DUSK_HORIZON * (0.3 + 0.7 * day) - horizon) * dusk * 0.75
    sky[SUN : SUN + 3] = sun
    sky[GLOW_COLOR : GLOW_COLOR + 3] = GLOW
    sky[GLOW_SHARE] = dusk
    sky[STARS] = max(0.0, 1.0 - day * 1.6)
    clouds = np.array((250.0, 251.0, 253.0)) * (0.12 + 0.88 * day)
    sky[CLOUD : CLOUD + 3] = clouds + (np.array((255.0, 178.0, 140.0)) - clouds) * dusk * 0.5 * (0.3 + 0.7 * day)
    tint = NIGHT_TINT + (1.0 - NIGHT_TINT) * day
    sky[LAND_TINT : LAND_TINT + 3] = tint + (DUSK_TINT - tint) * dusk * 0.6
    return Daylight(sky, NIGHT_LIGHT + (1.0 - NIGHT_LIGHT) * day, floor, power)
