"""`minecraft`: the block world, walked through, dug into and built on."""

from farworld.train.recipes.recipe import FEW_STEPS, Recipe

MINECRAFT = Recipe(
    name="minecraft",
    env="voxel",
    env_args={"actions": "full"},
    size=128,
    policies={"explore": 0.45, "revisit": 0.3, "random": 0.25},
    episodes=300,
    preset="voxel-s",
    autoencoder_steps=2400,
    world_steps=4000,
    few_step_steps=1000,
    settings=("checkpoint_every=50", "sample_every=1000"),
    few_step_settings=(f"shortcut_steps={FEW_STEPS}", "learning_rate=1e-3"),
    intro="A block world with eight biomes: walk, run, jump, look up and down, dig, and build with eight blocks.",
    why=(
        "nearly half of the episodes explore: walks to far places with looks up and down, jumps, digging, building, "
        "bumps and pauses in between; some go away and come back, or dig and build, look away and look again; and a "
        "quarter press the keys in turn at random, for of twenty-one keys the rare ones are else below 1 % of the steps"
    ),
    limits=(
        "What comes into view is invented as a blur of ground and sky, and blocks and trees melt on long walks; "
        "digging and building change little that can be seen."
    ),
    rights="Nothing it shows is Mojang's: the world and its textures are `farworld/Voxel-v0`'s own.",
)
