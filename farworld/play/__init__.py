"""Interactive player: window, keys, head-up display, headless scripts."""
