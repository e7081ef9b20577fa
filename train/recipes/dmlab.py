"""`dmlab`: the maze with DeepMind Lab's textures, as a world of its own."""

from farworld.train.recipes.recipe import FEW_STEPS, Recipe

DMLAB = Recipe(
    name="dmlab",
    env="maze",
    env_args={"actions": "full"},
    size=64,
    policies={"explore": 0.5, "revisit": 0.35, "random": 0.15},
    episodes=500,
    preset="maze-s",
    autoencoder_steps=3000,
    world_steps=6000,
    few_step_steps=1500,
    settings=("checkpoint_every=100", "sample_every=1000"),
    few_step_settings=(f"shortcut_steps={FEW_STEPS}", "learning_rate=1e-3"),
    intro="A maze with four differently clad quarters under a blue sky: walk, step aside, turn.",
    why=(
        "half of the episodes explore the maze with pauses, steps back and aside, bumps into walls and spins, so that "
        "every key is in the data; a third go away and come back, so that what was seen is seen again and remembering "
        "pays; the rest press keys at random, as a player does who tries them out"
    ),
    limits=(
        "Textures are blurred, and what comes into view after a corner is invented; on long walks the maze that is "
        "dreamed is no longer the one that it began in."
    ),
    rights="The wall and floor textures in its frames are DeepMind Lab's (Apache-2.0).",
    licences=("textures/dmlab/LICENSE",),
)
