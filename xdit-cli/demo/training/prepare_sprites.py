"""Renders the objects of `objects.py` from SVG icons to one archive of RGBA pictures.

    npm pack @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6
    python prepare_sprites.py iconify-json-noto-1.2.9.tgz iconify-json-fluent-emoji-flat-1.2.6.tgz sprites.npz

The archive holds `pixels` u8 `[sprites, 192, 192, 4]` (not premultiplied), `thing` and `style`. Each picture is cut to
what is visible, scaled to `ART` pixels along its longer side, and given a soft shadow, which keeps a blue heart visible
on a blue background.
"""

import io
import json
import sys
import tarfile

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

from objects import NOT_FLAT, STYLES, THINGS

SIDE = 192
ART = 164
SHADOW = {"blur": 5, "down": 5, "opacity": 0.35}


def icons(archive: str) -> dict:
    with tarfile.open(archive) as tar:
        return json.load(tar.extractfile("package/icons.json"))


def svg(collection: dict, name: str) -> str:
    icon = collection["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", collection.get("width", 16))
    height = icon.get("height", collection.get("height", 16))
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'


def draw(text: str, pixels: int) -> Image.Image:
    png = resvg_py.svg_to_bytes(svg_string=text, width=pixels, height=pixels)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def sprite(text: str) -> np.ndarray:
    large = draw(text, 1024)
    # A threshold, because some icons have an almost invisible haze around them.
    box = large.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    art = large.crop(box)
    scale = ART / max(art.size)
    # Premultiplied while it is scaled: transparent pixels have no colour of their own.
    art = art.convert("RGBa").resize([max(1, round(side * scale)) for side in art.size], Image.Resampling.LANCZOS)
    art = art.convert("RGBA")
    place = ((SIDE - art.width) // 2, (SIDE - art.height) // 2)

    shadow = Image.new("L", (SIDE, SIDE), 0)
    shadow.paste(art.getchannel("A"), (place[0], place[1] + SHADOW["down"]))
    shadow = shadow.filter(ImageFilter.GaussianBlur(SHADOW["blur"])).point(lambda a: round(a * SHADOW["opacity"]))
    canvas = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    canvas.putalpha(shadow)
    layer = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    layer.paste(art, place)
    return np.asarray(Image.alpha_composite(canvas, layer))


def main() -> None:
    noto, flat, out = sys.argv[1:]
    collections = dict(zip(STYLES, [icons(noto), icons(flat)], strict=True))
    pixels, things, styles = [], [], []
    for index, thing in enumerate(THINGS):
        for number, style in enumerate(STYLES):
            if style == "flat" and thing.name in NOT_FLAT:
                continue
            pixels.append(sprite(svg(collections[style], thing.icon)))
            things.append(index)
            styles.append(number)
    np.savez_compressed(out, pixels=np.stack(pixels), thing=np.array(things), style=np.array(styles))
    print(f"{len(pixels)} pictures of {len(THINGS)} objects in {out}")


if __name__ == "__main__":
    main()
