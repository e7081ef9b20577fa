"""farworld: record a first-person world, train a FAR-Long world model on it, play what it learned.

Importing it registers `farworld/World-v0` with Gymnasium; torch is imported when such an environment is made.
"""

from pathlib import Path as _Path

from gymnasium import register as _register

__version__ = "0.1.0"

# In a checkout, `python -m farworld` from the root finds this folder before the installed package, and
# the sub-packages envs/, train/ and assets/ lie beside it: let the package look there too.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "envs" / "__init__.py").is_file():
    __path__.append(str(_root))

_register(
    id="farworld/World-v0",
    entry_point="farworld.world_env:WorldEnv",
    vector_entry_point="farworld.world_env:WorldVectorEnv",
)
