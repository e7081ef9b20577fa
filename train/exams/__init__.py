"""Exams: what a world model must be able to do, judged against the real environment under the same keys."""

# The commands of `farworld.train.exams.cli`; their help stands here, so that they are not imported to be listed.
EXAMS = {
    "revisit": "Does the dream still know what it was shown? Look around, walk out, come back, look around again.",
    "drift": "For how long does the dream look like its world? Walk, turn, idle and mix all keys for 1,200 frames.",
    "control": "Do the keys do in the dream what they do in the world? A judge trained on real frames reads them back.",
    "dig": "Does what was dug or built stay so? Change the world, look away, look back; for worlds of blocks.",
    "memory-maze": "Is ground that was walked on known again? For worlds of Memory Maze, which must be installed.",
}
