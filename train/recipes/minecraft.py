"""`minecraft`: the block world, walked through, dug into and built on."""

from farworld.train.recipes.recipe import FEW_STEPS, Recipe

MINECRAFT = Recipe(
    name="minecraft",
    env="voxel",
    env_args={"actions": "full"},
    size=128,
    policies={"explore": 0.55, "revisit": 0.3, "random": 0.15},
    episodes=300,
    preset="voxel-s",
    autoencoder_steps=2400,
    world_steps=4000,
    few_step_steps=1000,
    settings=("checkpoint_every=50", "sample_every=1000"),
    few_step_settings=(f"shortcut_steps={FEW_STEPS}", "learning_rate=1e-3"),
    intro="A block world with eight biomes: walk, run, jump, look up and down, dig, and build with eight blocks.",
    why=(
        "most episodes explore: walks to far places with looks up and down, jumps, digging, building, bumps and pauses "
        "in between; a third go away and come back, or dig and build, look away and look again; the rest press "
        "each of the keys in turn at random, so that the rarest one is in the data too"
    ),
    limits=(
        "What comes into view is invented as a blur of ground and sky, and blocks and trees melt on long walks; "
        "digging and building change little that can be seen."
    ),
    rights="Nothing it shows is Mojang's: the world and its textures are `farworld/Voxel-v0`'s own.",
)
