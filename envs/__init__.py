"""Built-in worlds, real engines, recorder and policies. Importing it registers the worlds with Gymnasium."""

from gymnasium import register as _register

_register(id="farworld/Maze-v0", entry_point="farworld.envs.maze:MazeEnv")
_register(id="farworld/Voxel-v0", entry_point="farworld.envs.voxel:VoxelEnv")

# Real engines, which are extras, with the interface of Gymnasium.
_register(id="farworld/CraftGround-v0", entry_point="farworld.envs.engines.minecraft:CraftGroundEnv")
_register(id="farworld/Crafter-v0", entry_point="farworld.envs.engines.crafter:CrafterEnv")
_register(id="farworld/DMLab-v0", entry_point="farworld.envs.engines.dmlab:DMLabEnv")
_register(id="farworld/Doom-v0", entry_point="farworld.envs.engines.doom:DoomEnv")
_register(id="farworld/Luanti-v0", entry_point="farworld.envs.engines.luanti:LuantiEnv")
_register(id="farworld/MemoryMaze-v0", entry_point="farworld.envs.engines.memory_maze:MemoryMazeEnv")
