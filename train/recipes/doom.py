"""`doom`: a house in Doom with a pistol, drawn by VizDoom with Freedoom's assets.

64×64 and the maze's sizes: sixteen fine tokens a frame are played at more than 20 frames a second on two cores, and a
training on a CPU sees four times as many frames as at 128×128. The house is the same in every episode, so that a small
model can know it by heart; what differs is where one is, and what was shot at.
"""

from farworld.train.recipes.recipe import FEW_STEPS, Recipe

DOOM = Recipe(
    name="doom",
    env="doom",
    size=64,
    policies={"explore": 0.7, "revisit": 0.3},
    episodes=1000,
    preset="maze-s",
    autoencoder_steps=3600,
    world_steps=6000,
    few_step_steps=1200,
    settings=("checkpoint_every=100", "sample_every=1000"),
    few_step_settings=(f"shortcut_steps={FEW_STEPS}", "learning_rate=1e-3"),
    intro="The ten rooms of a house in Doom: walk, step aside, turn, and shoot holes into the walls.",
    why=(
        "most episodes go to the rooms that they have been in least, with pauses, steps back and aside, bumps into "
        "walls, spins and bursts of shots in between, so that every key is in the data; the others look aside and "
        "back, walk off and come back, or shoot a wall, turn away and look at the holes again. Keys at random would "
        "stay in one room, so explore has short bursts of them instead"
    ),
    limits=(
        "It knows this one house. Textures are blurred, holes in the walls fade when they are out of sight, and nobody "
        "else lives there."
    ),
    rights=(
        "Its frames are drawn by VizDoom (MIT; the engine is ZDoom) from the textures and sprites of the Freedoom "
        "project (BSD-3-Clause) and the map of VizDoom's scenario `my_way_home` (MIT). Nothing in it is id Software's."
    ),
    licences=("freedoom/LICENSE",),
)
