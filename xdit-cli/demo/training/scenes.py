"""Scenes: drawn at random, worded as captions, and painted in batches on any device.

A scene shows one to four of one object, or two objects beside or above each other, on a plain or patterned background.
`training` scenes never show a combination that `objects.held_out` keeps back.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from objects import COLOUR_NAMES, COLOURS, NOT_FLAT, PATTERNS, SIZES, STYLES, THINGS, held_out

SIDE = 256
# The visible art of a sprite is this much smaller than the sprite with its shadow.
ART = 164 / 192
NUMBERS = ("one", "two", "three", "four")
SIZE_WORDS = {"small": ("small", "small", "small", "little", "tiny"), "big": ("big", "big", "big", "large", "huge")}
PATTERN_WORDS = {"striped": ("striped",), "dotted": ("dotted", "dotted", "spotted"), "checkered": ("checkered",)}
PLACES = {
    "left": (-1, 0),
    "right": (1, 0),
    "top": (0, -1),
    "bottom": (0, 1),
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
# Pixels of the art's longer side, by number of objects (`pair`: two different ones) and size.
EXTENTS = {
    1: {"small": (62, 82), "normal": (108, 140), "big": (180, 212)},
    2: {"small": (46, 62), "normal": (84, 104), "big": (112, 120)},
    3: {"small": (42, 54), "normal": (76, 92), "big": (102, 114)},
    4: {"small": (42, 54), "normal": (76, 92), "big": (106, 116)},
    "pair": {"small": (46, 60), "normal": (84, 104), "big": (114, 122)},
}


@dataclass
class Scene:
    """What a picture shows (names as indices of the lists in `objects.py`), and where."""

    things: tuple[int, ...]
    count: int
    relation: int
    colour: int
    pattern: int
    style: int
    sizes: tuple[int, ...]
    place: str | None
    background: tuple[float, ...]
    slots: list[tuple[float, float, float, float]]

    def labels(self) -> tuple[int, ...]:
        first, second = self.things[0], self.things[-1]
        return (first, second, self.relation, self.count - 1, self.colour, self.pattern, self.sizes[0], self.style)


LABELS = ("first", "second", "relation", "count", "colour", "pattern", "size", "style")


class Sprites:
    """Which picture shows an object in a style."""

    def __init__(self, archive: str):
        with np.load(archive) as file:
            self.pixels = file["pixels"]
            keys = zip(file["thing"].tolist(), file["style"].tolist(), strict=True)
        self.index = {key: number for number, key in enumerate(keys)}


# --- Scenes ---------------------------------------------------------------------------------------------------------


def shade(colour: tuple[float, ...], towards: float, amount: float) -> tuple[float, ...]:
    return tuple(channel + (towards - channel) * amount for channel in colour)


def background(rng: random.Random, colour: int, pattern: int) -> tuple[float, ...]:
    """Two colours (0 to 1), pattern, period, angle, two phases."""
    name = COLOUR_NAMES[colour]
    light = rng.uniform(-0.045, 0.045)
    base = tuple(min(1.0, max(0.0, c / 255 + light + rng.uniform(-0.025, 0.025))) for c in COLOURS[name])
    if name == "white":
        other = shade(base, 0.0, rng.uniform(0.08, 0.14))
    elif name in ("black", "brown", "purple", "blue", "red", "green") or rng.random() < 0.5:
        other = shade(base, 1.0, rng.uniform(0.16, 0.28))
    else:
        other = shade(base, 1.0, rng.uniform(0.35, 0.5))
    period = rng.uniform(28, 52)
    angle = rng.choice((0.0, 0.25, 0.5, 0.75)) * math.pi if PATTERNS[pattern] == "striped" else 0.0
    return (*base, *other, float(pattern), period, angle, rng.uniform(0, period), rng.uniform(0, period))


def cells(rng: random.Random, number: int, size: str) -> tuple[list[tuple[float, float]], float, float]:
    """The middles of the places for `number` equal objects, and how far each may be moved across and down."""
    if number == 1:
        return [(128, 128)], 256, 256
    if number == 2:
        draw = rng.random()
        if draw < 0.7:
            return [(66, 128), (190, 128)], 124, 230
        if draw < 0.85:
            return [(128, 66), (128, 190)], 230, 124
        diagonal = [(66, 66), (190, 190)] if rng.random() < 0.5 else [(190, 66), (66, 190)]
        return diagonal, 124, 124
    if number == 3:
        if size != "big" and rng.random() < 0.45:
            return [(44, 128), (128, 128), (212, 128)], 82, 230
        triangle = [(128, 66), (66, 190), (190, 190)] if rng.random() < 0.6 else [(66, 66), (190, 66), (128, 190)]
        return triangle, 124, 124
    return [(66, 66), (190, 66), (66, 190), (190, 190)], 124, 124


def jitter(rng: random.Random, room: float, most: float) -> float:
    reach = max(0.0, min(room / 2, most))
    return rng.uniform(-reach, reach)


def place_equal(rng: random.Random, number: int, size: str, place: str | None) -> list[tuple[float, float, float]]:
    """Middle and extent of `number` equal objects."""
    extent = rng.uniform(*EXTENTS[number][size])
    if place is not None:
        across, down = PLACES[place]
        reach = 128 - extent / 2 - 8
        x = 128 + across * reach + jitter(rng, 12, 6) if across else 128 + jitter(rng, 30, 12)
        y = 128 + down * reach + jitter(rng, 12, 6) if down else 128 + jitter(rng, 30, 12)
        return [(x, y, extent)]
    middles, wide, high = cells(rng, number, size)
    extent = min(extent, wide - 2)
    if number == 1:
        return [(128 + jitter(rng, 250 - extent, 22), 128 + jitter(rng, 250 - extent, 22), extent)]
    together = (jitter(rng, 230 - 124 - extent, 14), jitter(rng, high - extent, 20))
    placed = []
    for x, y in middles:
        own = extent * rng.uniform(0.96, 1.0)
        dx, dy = jitter(rng, wide - own, 6), jitter(rng, high - own, 6)
        limit = own / 2 + 2
        x = min(max(x + together[0] + dx, limit), SIDE - limit)
        y = min(max(y + together[1] * (high > 200) + dy, limit), SIDE - limit)
        placed.append((x, y, own))
    return placed


def draw_scene(rng: random.Random, sprites: Sprites, training: bool = True) -> Scene:
    """A scene at random; a `training` scene shows no combination that is held out."""
    while True:
        pair = rng.random() < 0.28
        count = 1 if pair else rng.choices((1, 2, 3, 4), (50, 18, 16, 16))[0]
        things = tuple(rng.sample(range(len(THINGS)), 2)) if pair else (rng.randrange(len(THINGS)),)
        colour = rng.randrange(len(COLOUR_NAMES))
        if not (training and any(held_out(thing, colour, count) for thing in things)):
            break
    pattern = rng.choices(range(len(PATTERNS)), (76, 8, 8, 8))[0]
    flat = rng.random() < 0.3 and not any(THINGS[thing].name in NOT_FLAT for thing in things)
    style = STYLES.index("flat" if flat else "noto")
    place, relation = None, 0
    if pair:
        relation = 1 if rng.random() < 0.6 else 2
        sizes = rng.choice(((0, 2), (2, 0), (0, 1), (1, 0))) if rng.random() < 0.3 else (1, 1)
        middles = ((66, 128), (190, 128)) if relation == 1 else ((128, 66), (128, 190))
        slots, drift = [], jitter(rng, 60, 18)
        for thing, size, (x, y) in zip(things, sizes, middles, strict=True):
            extent = rng.uniform(*EXTENTS["pair"][SIZES[size]])
            dx, dy = jitter(rng, 124 - extent, 8), jitter(rng, 124 - extent, 8)
            x, y = (x + dx, y + dy + drift) if relation == 1 else (x + dx + drift, y + dy)
            slots.append((sprites.index[thing, style], x, y, extent / ART))
    else:
        size = rng.choices(range(3), (28, 47, 25))[0]
        sizes = (size,)
        if count == 1 and SIZES[size] != "big" and rng.random() < 0.25:
            place = rng.choice(tuple(PLACES))
        placed = place_equal(rng, count, SIZES[size], place)
        slots = [(sprites.index[things[0], style], x, y, extent / ART) for x, y, extent in placed]
    return Scene(things, count, relation, colour, pattern, style, sizes, place, background(rng, colour, pattern), slots)


# --- Captions -------------------------------------------------------------------------------------------------------


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeio" or words.startswith("umbrella") else f"a {words}"


def noun_phrase(rng: random.Random, thing: int, count: int, size: str, plain: bool = False) -> str:
    """«two small cacti»; `plain` avoids synonyms and leaves nothing out."""
    item = THINGS[thing]
    single, plural = item.name, item.plural
    if not plain and item.synonyms and rng.random() < 0.15:
        single, plural = rng.choice(item.synonyms)
    adjective = ""
    if size in SIZE_WORDS and (plain or rng.random() < 0.9):
        adjective = (size if plain else rng.choice(SIZE_WORDS[size])) + " "
    if count == 1:
        words = adjective + single
        draw = 1.0 if plain else rng.random()
        return words if draw < 0.07 else f"one {words}" if draw < 0.11 else f"the {words}" if draw < 0.14 else with_article(words)
    draw = 1.0 if plain else rng.random()
    number = str(count) if draw < 0.08 else NUMBERS[count - 1]
    return f"{number} {adjective}{plural}"


def background_phrase(rng: random.Random, scene: Scene) -> str:
    colour, pattern = COLOUR_NAMES[scene.colour], PATTERNS[scene.pattern]
    draw = rng.random()
    if draw < 0.22:
        if pattern != "plain" and draw < 0.11:
            return f"on {with_article(rng.choice(PATTERN_WORDS[pattern]))} background"
        return ""
    if pattern == "plain":
        if draw < 0.28:
            return f"on {colour}"
        words = f"plain {colour}" if draw < 0.33 else colour
    else:
        words = f"{rng.choice(PATTERN_WORDS[pattern])} {colour}"
        if draw < 0.3:
            words = f"{colour} {rng.choice(PATTERN_WORDS[pattern])}"
    link = rng.choices(("on", "against", "with", "in front of"), (80, 7, 9, 4))[0]
    return f"{link} {with_article(words)} background"


def place_phrase(rng: random.Random, place: str) -> str:
    if " " in place:
        return rng.choice((f"in the {place} corner", f"in the {place} corner", f"at the {place}"))
    if place in ("left", "right"):
        return rng.choice((f"on the {place}", f"on the {place}", f"on the {place} side", f"at the {place} edge"))
    return rng.choice((f"at the {place}", f"at the {place}", f"near the {place}"))


def pair_phrase(rng: random.Random, scene: Scene) -> str:
    first, second = (
        noun_phrase(rng, thing, 1, SIZES[size]) for thing, size in zip(scene.things, scene.sizes, strict=True)
    )
    draw = rng.random()
    if draw < 0.16:
        if rng.random() < 0.5:
            first, second = second, first
        return f"{first} and {second}"
    if scene.relation == 1:
        if draw < 0.28:
            if rng.random() < 0.5:
                first, second = second, first
            return f"{first} {rng.choice(('next to', 'beside'))} {second}"
        if draw < 0.58:
            return f"{first} {rng.choice(('to the left of', 'to the left of', 'left of'))} {second}"
        if draw < 0.88:
            return f"{second} {rng.choice(('to the right of', 'to the right of', 'right of'))} {first}"
        return f"{first} on the left and {second} on the right"
    if draw < 0.58:
        return f"{first} {rng.choice(('above', 'above', 'over'))} {second}"
    if draw < 0.92:
        return f"{second} {rng.choice(('below', 'below', 'under'))} {first}"
    return f"{first} at the top and {second} at the bottom"


def caption(rng: random.Random, scene: Scene) -> str:
    """One of many wordings of a scene; some leave out the background, the size or the number."""
    if len(scene.things) == 2:
        words = pair_phrase(rng, scene)
    else:
        words = noun_phrase(rng, scene.things[0], scene.count, SIZES[scene.sizes[0]])
        if scene.place is not None and rng.random() < 0.95:
            words += " " + place_phrase(rng, scene.place)
        elif scene.count == 1 and scene.place is None and rng.random() < 0.06:
            words += rng.choice((" in the middle", " in the center"))
    where = background_phrase(rng, scene)
    if STYLES[scene.style] == "flat":
        draw = rng.random()
        if draw < 0.6:
            words = rng.choice(("a flat drawing of ", "a flat icon of ", "a flat picture of ")) + words
            return f"{words} {where}".strip()
        tail = rng.choice((", flat style", " in flat style", ", flat design"))
        return f"{words} {where}".strip() + tail
    draw = rng.random()
    if draw < 0.2:
        words = rng.choice(("a picture of ", "a drawing of ", "an image of ", "an emoji of ", "an icon of ")) + words
    elif draw < 0.25 and where.startswith("on "):
        return f"{where}, {words}"
    return f"{words} {where}".strip()


# --- Many at once ---------------------------------------------------------------------------------------------------


def draw_chunk(seed: int, number: int, sprites: Sprites, training: bool) -> tuple[np.ndarray, ...]:
    """`number` scenes as arrays: backgrounds `[n, 11]`, slots `[n, 4, 4]` (sprite or -1, x, y, side), labels."""
    rng = random.Random(seed)
    scenes = [draw_scene(rng, sprites, training) for _ in range(number)]
    return *arrays(scenes), scenes


def arrays(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    slots = np.full((len(scenes), 4, 4), -1, np.float32)
    for row, scene in zip(slots, scenes, strict=True):
        row[: len(scene.slots)] = scene.slots
    backgrounds = np.array([scene.background for scene in scenes], np.float32)
    return backgrounds, slots, np.array([scene.labels() for scene in scenes], np.int64)


class Painter:
    """Paints scenes in batches.

    Sprites are kept at three sharpnesses, each as large as the first, so that a sprite drawn small is not aliased.
    """

    def __init__(self, sprites: Sprites, device: torch.device):
        pixels = torch.from_numpy(sprites.pixels).to(device).permute(0, 3, 1, 2).float() / 255
        pixels[:, :3] *= pixels[:, 3:]
        levels = [pixels]
        for factor in (2, 4):
            small = F.avg_pool2d(pixels, factor)
            levels.append(F.interpolate(small, size=pixels.shape[-2:], mode="bilinear", align_corners=False))
        self.count = len(pixels)
        self.levels = torch.cat(levels)

    def paint(self, backgrounds, slots, side: int = SIDE, origin=None) -> torch.Tensor:
        """Pictures `[n, 3, side, side]` in -1 to 1; `origin` `[n, 2]` is the pixel at the top left (x, y)."""
        device = self.levels.device
        backgrounds, slots = backgrounds.to(device), slots.to(device)
        n = len(slots)
        origin = torch.zeros(n, 2, device=device) if origin is None else origin.to(device)
        steps = torch.arange(side, device=device) + 0.5
        x = (origin[:, :1] + steps).view(n, 1, 1, side)
        y = (origin[:, 1:] + steps).view(n, 1, side, 1)
        mix = self.pattern(backgrounds[:, 6:].view(n, 5, 1, 1, 1).unbind(1), x, y)
        one, two = backgrounds[:, :3].view(n, 3, 1, 1), backgrounds[:, 3:6].view(n, 3, 1, 1)
        picture = one + (two - one) * mix
        for slot in slots.unbind(1):
            rows = (slot[:, 0] >= 0).nonzero()[:, 0]
            if len(rows) == 0:
                break
            index, cx, cy, extent = slot[rows].unbind(1)
            level = (extent < 110).long() + (extent < 52).long()
            art = self.levels[index.long() + level * self.count]
            half = (extent / 2).view(-1, 1, 1)
            u = (x[rows, 0] - cx.view(-1, 1, 1)) / half
            v = (y[rows, 0] - cy.view(-1, 1, 1)) / half
            shape = (len(rows), side, side)
            grid = torch.stack([u.expand(shape), v.expand(shape)], -1)
            art = F.grid_sample(art, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            picture[rows] = picture[rows] * (1 - art[:, 3:]) + art[:, :3]
        return picture * 2 - 1

    @staticmethod
    def pattern(parameters, x, y) -> torch.Tensor:
        """How much of the second colour a pixel has."""
        kind, period, angle, phase_x, phase_y = parameters

        def stripe(along):  # Signed distance in pixels to the border between two bands.
            fraction = (along / period) % 1.0
            return ((fraction - 0.5).abs() * 2 - 0.5) * period / 2

        def inside(distance):
            return (distance + 0.5).clamp(0, 1)

        x, y = x + phase_x, y + phase_y
        striped = inside(stripe(x * angle.cos() + y * angle.sin()))
        across, down = inside(stripe(x)) * 2 - 1, inside(stripe(y)) * 2 - 1
        checkered = 0.5 + 0.5 * across * down
        dx, dy = ((x / period) % 1.0 - 0.5) * period, ((y / period) % 1.0 - 0.5) * period
        dotted = inside(0.28 * period - (dx * dx + dy * dy).sqrt())
        zero = torch.zeros_like(striped)
        return sum(
            torch.where(kind == PATTERNS.index(name), mix, zero)
            for name, mix in (("striped", striped), ("dotted", dotted), ("checkered", checkered))
        )
