"""The objects, colours, patterns and sizes that the model draws, and the rule that holds combinations out.

This file is the whole vocabulary: `prepare_sprites.py` draws the objects, `scenes.py` composes them and words the
captions, `evaluate.py` names them again.
"""

import zlib
from dataclasses import dataclass

STYLES = ("noto", "flat")


@dataclass(frozen=True)
class Thing:
    """One object: how it is called and which icon shows it."""

    name: str
    plural: str
    icon: str
    synonyms: tuple[tuple[str, str], ...] = ()


def thing(name: str, icon: str | None = None, plural: str | None = None, *synonyms: str) -> Thing:
    """A `Thing` with a regular plural; a synonym is written `singular/plural` or, if regular, `singular`."""
    pairs = tuple((word.partition("/")[0], word.partition("/")[2] or word + "s") for word in synonyms)
    return Thing(name, plural or name + "s", icon or name.replace(" ", "-"), pairs)


THINGS = (
    # Fruit, vegetables and other food.
    thing("red apple", None, None, "apple"),
    thing("green apple"),
    thing("pear"),
    thing("banana"),
    thing("lemon"),
    thing("watermelon", None, None, "slice of watermelon/slices of watermelon"),
    thing("strawberry", None, "strawberries"),
    thing("pineapple"),
    thing("carrot"),
    thing("mushroom"),
    thing("tomato", None, "tomatoes"),
    thing("eggplant", None, None, "aubergine"),
    thing("avocado"),
    thing("donut", "doughnut", None, "doughnut"),
    thing("pizza", None, None, "slice of pizza/slices of pizza"),
    thing("hamburger", None, None, "burger"),
    thing("cupcake"),
    thing("teapot"),
    # Animals.
    thing("cat", None, None, "kitten"),
    thing("dog", None, None, "puppy/puppies"),
    thing("fish", None, "fish"),
    thing("octopus", None, "octopuses"),
    thing("crab"),
    thing("whale"),
    thing("turtle", None, None, "tortoise"),
    thing("snail"),
    thing("butterfly", None, "butterflies"),
    thing("bee", "honeybee", None, "honeybee"),
    thing("ladybug", "lady-beetle", None, "ladybird"),
    thing("spider"),
    thing("penguin"),
    thing("owl"),
    thing("duck"),
    thing("chick", "baby-chick"),
    thing("rabbit", None, None, "bunny/bunnies"),
    thing("elephant"),
    thing("pig"),
    thing("cow"),
    thing("sheep", "ewe", "sheep"),
    thing("fox", None, "foxes"),
    thing("panda"),
    thing("lion"),
    thing("tiger"),
    thing("frog"),
    thing("monkey"),
    thing("unicorn"),
    thing("snake"),
    thing("giraffe"),
    thing("zebra"),
    # Vehicles and buildings.
    thing("car", "automobile", None, "automobile"),
    thing("bus", None, "buses"),
    thing("taxi", None, None, "cab"),
    thing("bicycle", None, None, "bike"),
    thing("tractor"),
    thing("airplane", None, None, "plane"),
    thing("helicopter"),
    thing("rocket"),
    thing("sailboat", None, None, "sailing boat"),
    thing("train", "locomotive", None, "locomotive"),
    thing("castle"),
    thing("house"),
    thing("tent"),
    # Plants and weather.
    thing("cactus", None, "cacti", "cactus/cactuses"),
    thing("tree", "deciduous-tree"),
    thing("palm tree"),
    thing("sunflower"),
    thing("tulip"),
    thing("rose"),
    thing("sun"),
    thing("moon", "crescent-moon", None, "crescent moon"),
    thing("star"),
    thing("cloud"),
    thing("rainbow"),
    thing("snowman", None, "snowmen"),
    # Things.
    thing("umbrella"),
    thing("balloon"),
    thing("gift", "wrapped-gift", None, "present"),
    thing("bell"),
    thing("key"),
    thing("light bulb", None, None, "lightbulb"),
    thing("book", "blue-book"),
    thing("alarm clock", None, None, "clock"),
    thing("camera"),
    thing("guitar"),
    thing("trumpet"),
    thing("drum"),
    thing("soccer ball"),
    thing("crown"),
    thing("diamond", "gem-stone"),
    thing("anchor"),
    thing("robot"),
    thing("ghost"),
    thing("pumpkin", "jack-o-lantern"),
    thing("teddy bear"),
    thing("red heart", None, None, "heart"),
    thing("blue heart"),
)
# Flat art that could not be told from its background or from other objects: these are drawn in one style only.
NOT_FLAT = {"sheep", "airplane"}

# sRGB, the middle of what a name covers; every scene moves it a little.
COLOURS = {
    "red": (214, 52, 56),
    "orange": (247, 148, 52),
    "yellow": (250, 216, 82),
    "green": (92, 176, 94),
    "blue": (62, 122, 218),
    "purple": (142, 86, 188),
    "pink": (250, 168, 200),
    "brown": (138, 94, 66),
    "gray": (150, 152, 158),
    "white": (248, 248, 248),
    "black": (34, 34, 38),
}
COLOUR_NAMES = tuple(COLOURS)
PATTERNS = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "normal", "big")
# Of two objects: the first is beside or above the second.
RELATIONS = ("none", "beside", "above")
MAX_COUNT = 4


def held_out(thing: int, colour: int, count: int) -> bool:
    """Whether no training picture may show `count` of this object on this colour: a fifth of all combinations.

    A checksum decides, so the answer depends on names alone and stays when the lists grow.
    """
    key = f"{THINGS[thing].name}/{COLOUR_NAMES[colour]}/{count}"
    return zlib.crc32(key.encode()) % 5 == 0
