"""The texts covered by the tokenizer goldens: several hundred, from plain prompts to unusual input."""

PLAIN = """
A small cactus with a happy face in the Sahara desert.
a photograph of an astronaut riding a horse
An oil painting of two cats playing chess, dramatic lighting, 8k, highly detailed
pixel art, sunset over the sea; low-poly mountains (isometric) -- trending
Don't stop: it's the dog's 3rd birthday & they've eaten 1,234.56 cakes!
"Quoted" 'single' `back` «angle» „low“ “curly” ‘apostrophes’ and ’em
e-mail me@example.com or visit https://example.com/a_b?c=d&e=%20#frag
C:\\path\\file.txt /usr/local/bin ~/.profile $HOME ${x} #hash @name
snake_case camelCase kebab-case SCREAMING_CASE x86_64 v1.2.3-rc.4
12:45 2024-02-29 1e-9 0x1F 50% -7 +8 1/2 3×4 5÷6 = <= >= != ~
UPPER lower MiXeD ALL CAPS
the quick brown fox jumps over the lazy dog
antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis
aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
........,,,,,,,,;;;;;;;;!!!!!!!!????????
a b c d e f g h i j k l m n o p q r s t u v w x y z
1 12 123 1234 12345 123456 1234567 12345678901234567890
""".strip().splitlines()

LANGUAGES = """
Ein Mädchen mit Perlenohrring, großes Ölgemälde, süß
Une forêt enchantée, où l'œuvre naît; çà et là, très éloigné
El niño soñó con la cigüeña, ¿verdad? ¡Sí!
Un piccolo paese sulle colline della Toscana, più bello che mai
Маленький кактус со счастливым лицом в пустыне Сахара
Μια μικρή γάτα κοιμάται στον ήλιο. ΟΔΥΣΣΕΥΣ
Zażółć gęślą jaźń
Příliš žluťoučký kůň úpěl ďábelské ódy
İstanbul'da ılık bir ĞÜŞÖÇ akşamı
Árvíztűrő tükörfúrógép
Þórður á Íslandi, Ærø, Ångström, smørrebrød
一只可爱的猫在月光下弹钢琴
東京タワーの夜景、桜が満開です。
ｶﾀｶﾅ ﾊﾝｶｸ ガギグゲゴ
서울의 봄, 벚꽃이 흩날린다
แมวสีส้มนั่งบนหลังคา
एक छोटी बिल्ली धूप में सो रही है
একটি ছোট বিড়াল
ஒரு சிறிய பூனை
قطة صغيرة تنام تحت الشمس، والقمر؟
חתול קטן ישן בשמש
گربهٔ کوچک می‌خوابد
Մի փոքրիկ կատու
პატარა კატა
ትንሽ ድመት
Một chú mèo nhỏ đang ngủ dưới nắng
ꦏꦸꦕꦶꦁ ᚠᚢᚦ 𐍈𐌰 𒀀𒁀 𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝕕𝕠𝕦𝕓𝕝𝕖 𝒸𝓊𝓇𝓈𝒾𝓋ℯ
""".strip().splitlines()

SYMBOLS = [
    "😀", "a 😀 b", "👍🏽 thumbs", "👩‍👩‍👧‍👦 family", "🇩🇪🇫🇷 flags", "❤️ vs ❤", "☃☄★☆", "🏳️‍🌈", "1️⃣2️⃣", "🤷🏿‍♀️ shrug 🫠",
    "→ ⇒ ∀x∈ℝ: ∑ᵢ xᵢ² ≤ ∞ ∂/∂t ∇·E", "€ £ ¥ ₿ ¢ ₹", "© ® ™ ℠ § ¶ † ‡ • ‣", "½ ¼ ¾ ⅓ ⅞ № ℃ ℉ Å K Ω", "x² y³ H₂O 10⁻⁹",
    "①②③ ⓐⓑ ㈠ ㊗ ㍿ ㎏ ㏒", "ﬁ ﬂ ﬀ ﬃ ﬄ ﬅ ﬆ", "Ａｌｌ　ｆｕｌｌ－ｗｉｄｔｈ　１２３！", "ǅ ǆ ĳ ŉ ſ ẞ", "… ‥ ․", "– — ― ‐ ‑ ‒ − ﹣ －",
    "′ ″ ‴ ʹ ʺ", "░▒▓█ ┌─┐│└┘", "♩♪♫♬ ♠♣♥♦", "¿¡ªº¬¯´¸¨", "▁", "▁▁ a ▁b▁", "a▁b", "_ __ ___", "�", "￼ ￹a￺",
    "Ⅷ Ⅻ ⅳ", "㌀ ㍻ ㋿", "﷽ ﷺ", "🀄🂡🎴", "ªº ᵃᵇ ₐₑ", "℀ ℅ ℡ ℻",
]

MARKS = [
    "e\u0301", "cafe\u0301 au lait", "n\u0303o", "A\u030a \u00c5 \u212b", "Z\u0351\u036b\u0343a\u0335l\u0322g\u0361o\u0338", "\u0301 alone", "a\u0301\u0323 a\u0323\u0301",
    "\u1100\u1161\u11a8 \uac01", "\u0915\u094d\u0937", "\u0e01\u0e33", "i\u0307 \u0130 \u0131", "o\u0308\u0304", "\u0958 \u0915\u093c", "\u304c \u304b\u3099", "s\u0323\u0307 \u1e69",
    "q\u0307\u0323", "a\u034f\u0308", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f", "x\u20dd y\u20e3", "\u1ea4 \u00c2\u0301 A\u0302\u0301",
]

SPACES = [
    "", " ", "   ", "\t", "\n", "\r\n", " \t\n\r ", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2028", "\u0085", "\u180e",
    " leading", "trailing ", "  both  ", "double  space", "many      spaces", "tab\tseparated", "new\nline", "carriage\r\nreturn", "a\n\nb", "a \n b",
    "no\u00a0break", "\u00a0edge\u00a0", "narrow\u202fno-break", "thin\u2009space", "ideographic\u3000space", "zero\u200bwidth", "zero\u200cwidth", "zero\u200dwidth",
    "word\u2060joiner", "soft\u00adhyphen", "\ufeffbom", "line\u2028sep", "para\u2029sep", "next\u0085line", "vertical\u000btab", "form\u000cfeed", "ogham\u1680space", "medium\u205fspace",
    "a \u00a0 b", "a\u2003 b", " \u200b ", "a \u200b b", "x \u00ad y", " . ", "( a )", "a\u3000\u3000b ", "mongolian\u180evowel", "hangul\u3164filler", "braille\u2800blank",
]

CONTROLS = [
    "\u0000", "a\u0000b", "\u0001\u0002\u0003", "bell\u0007", "back\bspace", "esc\u001b[31mred\u001b[0m", "file\u001csep", "unit\u001fsep", "del\u007f", "c1\u0080\u0090\u009f", "\u00ad",
    "ltr\u200emark", "rtl\u200fmark", "\u202eoverride\u202c", "\u2066isolate\u2069", "\u202aembed\u202c", "tag\U000e0041\U000e007f", "private\ue000use", "\U000f0000", "\U0010ffff",
    "non\uffffchar", "\ufdd0", "vs\ufe0e\ufe0f", "\U000e0100", "\u061calm", "abc \u05d0\u05d1\u05d2 123 \u05d3", "\u0627\u0644\u0633\u0644\u0627\u0645 world \u0639\u0644\u064a\u0643\u0645",
]

SPECIALS = [
    "</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_99>", "<extra_id_100>", "<s>", "a</s>b", "a </s> b", "a  </s>  b", "</s></s>", "</s> </s>",
    "fill <extra_id_0> the <extra_id_1> blank", "x<extra_id_0>y", "x <extra_id_0>y", "x<extra_id_0> y", "x\t<extra_id_5>\ny", "<extra_id_3><extra_id_4>", "<extra_id_3> <extra_id_4>",
    "<pad> <pad>x", "< /s>", "</S>", "<PAD>", "<extra_id_>", "<extra_id_01>", "extra_id_0", "<<extra_id_0>>", "<extra_id_0", "</s", "<unk>known<unk>", "\u3000<extra_id_7>\u3000z", "\u00a0</s>\u00a0z",
    "e<extra_id_0>\u0301", "▁<pad>▁", "<mask> [CLS] [SEP] <|endoftext|>", "<0x0A> <0xE2>",
]

HTML = ["<b>bold</b>", "&amp; &lt; &gt; &quot;", "<div class='x'>y</div>", "{a: [1, 2]}", "a|b\\c", "line\\n", "%20%E2%82%AC", "1<2>0", "<<<>>>", "^caret ~tilde `tick`"]


def sweep():
    """Every block of the Basic Multilingual Plane that T5's rules affect, a few characters at a time."""
    starts = [0x00a0, 0x00c0, 0x0130, 0x0180, 0x01c4, 0x02b0, 0x0340, 0x0370, 0x0384, 0x0400, 0x0531, 0x0591, 0x0621, 0x0671, 0x06f0, 0x0901, 0x0958, 0x09dc, 0x0a33, 0x0b5c, 0x0c46, 0x0d4a, 0x0e31]
    starts += [0x0eb3, 0x0f43, 0x0f71, 0x1025, 0x10a0, 0x1100, 0x1175, 0x1200, 0x13a0, 0x1680, 0x17b4, 0x180b, 0x1b06, 0x1d2c, 0x1e00, 0x1e9a, 0x1f00, 0x1f70, 0x2000, 0x2010, 0x2028, 0x2060, 0x2070]
    starts += [0x20a8, 0x20d0, 0x2100, 0x2150, 0x2190, 0x222c, 0x2329, 0x2460, 0x24b6, 0x2a0c, 0x2a74, 0x2c7c, 0x2e80, 0x2f00, 0x3000, 0x3036, 0x3041, 0x3094, 0x309f, 0x3131, 0x3192, 0x3200, 0x3300]
    starts += [0x33ff, 0x4e00, 0x9fff, 0xa69c, 0xa770, 0xac00, 0xd7a0, 0xf900, 0xfa20, 0xfb00, 0xfb1d, 0xfb50, 0xfc00, 0xfdfa, 0xfe00, 0xfe10, 0xfe30, 0xfe70, 0xff01, 0xff61, 0xffe0, 0xfff9]
    starts += [0x10400, 0x1109a, 0x1d15e, 0x1d400, 0x1d7ce, 0x1ee00, 0x1f100, 0x1f200, 0x1f600, 0x20000, 0x2f800]
    for start in starts:
        run = [chr(code) for code in range(start, start + 24) if not 0xd800 <= code < 0xe000]
        yield "".join(run[:8]) + " " + " ".join(run[8:16]) + " a" + "a".join(run[16:])


LONG = " ".join(f"{word}{'' if i % 7 else ','}" for i, word in enumerate(("a city of glass under green clouds where old robots plant trees and sing quietly " * 154).split()[:2000]))

TEXTS = PLAIN + LANGUAGES + SYMBOLS + MARKS + SPACES + CONTROLS + SPECIALS + HTML + list(sweep()) + [LONG]

# Prompts that are cut: (text, max_length).
CUTS = [(PLAIN[0], n) for n in (1, 2, 5, 11, 12, 13, 14, 15, 16, 120)]
CUTS += [(PLAIN[4], n) for n in (3, 8, 12, 20)] + [("well , they 're here . is n't it ? yes ! i 'm", n) for n in (2, 4, 9)]
CUTS += [("a <extra_id_0> b </s> c", n) for n in (1, 2, 3, 4, 8)] + [("", 1), ("", 2), ("    ", 1), ("naïve café 😀 東京 end", 4), (LANGUAGES[5], 6), (LONG, 120), (LONG, 300)]
