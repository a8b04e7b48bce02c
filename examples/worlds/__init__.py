"""The worlds by name. An explicit table: a world that is not listed here does not exist."""

from examples.worlds.guilds import GUILDS
from examples.worlds.letters import LETTERS
from examples.worlds.museum import MUSEUM
from examples.worlds.world import World

WORLDS: dict[str, World] = {world.name: world for world in (MUSEUM, GUILDS, LETTERS)}

__all__ = ["WORLDS", "World"]
