"""The player: a learned world under the keyboard, in a window or headless."""
