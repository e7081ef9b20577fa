"""Built-in worlds, recorder and exploration policies. Importing it registers the worlds with Gymnasium."""

from gymnasium import register as _register

_register(id="farworld/Maze-v0", entry_point="farworld.envs.maze:MazeEnv")
_register(id="farworld/Voxel-v0", entry_point="farworld.envs.voxel:VoxelEnv")
