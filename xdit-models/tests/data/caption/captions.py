"""The captions covered by the goldens: typical prompts, and the other contents of web captions."""

PROMPTS = """
A small cactus with a happy face in the Sahara desert.
  An Astronaut Riding a HORSE, 8k, highly detailed
"A painting of a fox" by someone
'single quoted'
“curly quoted” and ‘single’ and `back´ and «angle»
it's the dog's 3rd birthday; they've eaten 1,234.56 cakes!
photo of a cat,dog and/or bird.nice
pixel art -- low-poly — isometric – view ― bar ‐ hyphen
this-is-my-cute-cat-on-a-mat
this_is_my_cute_cat
one-two_three-four
one-two-three-four
***AUSVERKAUFT*** #AUSVERKAUFT
\"\"\"AUSVERKAUFT\"\"\"
wait... what....ever . . end
100% of a+b = c & d
a/b\\c|d {e} [f] (g) ~h~ §1 ¿que? ¡si! 10º ½ ¾
<person> riding a bike, a <PERSON> too
underscore _ at end_
-dash at start
,comma start
:colon end:
.hidden
. alone
x . y
a : b : c
a:b c :d
free shipping worldwide
worldwide free shipping on all hats
free download of a png image, jpg images and pdf
download free wallpaper now
click for details or click on this
CLICK for More
page 12 of page  34, pages 5
webp eps apk mp4 bmp jpeg
jpg
png images
1024x768 and 3.5x4 and 10х20 and 30×40 wallpaper
size 12x, x12, 12.x5
""".strip().splitlines()

IDS = """
jc6640 jc6640vc 6640vc231 j2d1a2a a1b2c3d4
abc123 abcd1234 ab12 a1 1a 1a1 12ab34
call 123456 or 12345, #123 #1234 #12345 #123456
#1 #12a #12 #999! a#123
12:45
at 12:45 
at 1:30
ends 3:15   
ip 192.168.0.1 and 10.0.0.255:8080, v1.2.3.4.5
IMG_20200101_123456.JPG
my photo.jpg is here.png.
file.tar.gz a.b.pdf x.mp4y
0123456789abcdef0123456789abcdef
d41d8cd98f00b204e9800998ecf8427e photo
550e8400-e29b-41d4-a716-446655440000
sku:ab-1234-xy
№ 12345 ٣٤٥٦٧٨ ١٢٣
''quoted'' ""double"" '"mixed"'
""".strip("\n").splitlines()

ADDRESSES = """
see https://example.com/a/b?c=d&e=f#g for more
http://www.site.org:8080/x and HTTPS://UPPER.COM/Y
www.example.com/path/to-page
example.com, example.co.uk, site.ru/page, my.gov.it
visit my-shop.com/item_1-2/ now
mail me@example.com or first.last@mail.org please
@nickname and @user_1, a@b
https:foo https:/bar https:///baz www:abc
com.com.com net
notaurl.xyz but example.community and example.com@home
ftp://files.net/a.zip
%D0%BF%D1%80%D0%B8%D0%B2%D0%B5%D1%82 a%20b+c %zz %4 %e9
caf%C3%A9+au+lait 100%25 50%
a%26amp%3Bb %3Cb%3Ebold%3C/b%3E
""".strip().splitlines()

HTML = """
<b>bold</b> and <i>italic</i>text
<p>one</p><p>two</p>
a<br>b<br/>c<br />d</br>e
<a href="http://x.com/y">link</a> text
<a href='a>b' title=x>quoted</a>
<img src=a.jpg alt="a cat"> after
<script>var a = "<b>";</script>after script
<style>p { color: red }</style>styled
<script>never closed
<SCRIPT>x</ScRiPt >y
<template>hidden</template>shown
<ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp></ruby> ruby
<!-- comment -->after comment
a<!-- never closed
a<!doctype html>b<!DOCTYPE
<![CDATA[cdata text]]> after
<![if ie]>office<![endif]>
<!x>bogus</ >bogus</3>end
<?php echo 1 ?> after
a < b and c > d, 1<2, <3 love
a <b
unclosed <b and more
<
a&
&
& b
AT&T and R&D
&amp; &lt;b&gt; &quot;x&quot; &nbsp;y &copy;2020
&amp;amp; &amp;lt;b&amp;gt; &amp;amp;quot;
&eacute;t&eacute; &Eacute; &EACUTE; &ntilde
&notanentity; &notit; &not x &am
&#65;&#x42;&#67 &#150; &#0; &#xd800; &#1114112; &#129;
&# x &#; &#x; &#abc; rest <b>raw</b>
&#12ab; then &#x1f600;
&a
&ab
&a- &a.b;c
<div class=x
id=y>attrs</div>
<b/>self <c d/>e
<b =x>odd</b> <b"x>y
<p/ >slash</p>
</p>only end</div>
<pre>  spaces   </pre>  <b> </b>  end
<b>  </b>
line<br>
<textarea>
  </textarea>x
<1a>not a tag</1a>
<é>not a tag</é>
<a<b>nested</b>
<a b='c>unclosed quote
<p><b>mis</p>nested</b>
<input>in</input>out
x&lt;script&gt;alert(1)&lt;/script&gt;
&amp;#39;s &#39;s &apos;
&fjlig;ord &bne; &NotEqualTilde;
""".strip("\n").splitlines()

SCRIPTS = """
一只可爱的猫 a cat 猫
東京タワーの夜景 tokyo
ｶﾀｶﾅ ﾊﾝｶｸ ガギ
서울의 봄
㈱ ㎏ ㇀ ㇰ ㊗ ㍿ 㐀 ䷀
Маленький кактус в ПУСТЫНЕ
ΟΔΥΣΣΕΥΣ ΣΑΣ Σ aΣ ΑΣ.
İSTANBUL ı ẞ ŉ ǅ
قطة صغيرة، والقمر؟
חתול־קטן
ﬁre ﬂow oﬃce ﬆop
Ａｌｌ　ｆｕｌｌ－ｗｉｄｔｈ　１２３！
cafe\u0301 e\u0301x n\u0303
e\u0323\u0301 a\u0301b1c2
ⅷ ² ½ ①a ²x³
x\u00a0y\u3000z\u2009w \u1680v
zero\u200bwidth\u200cjoin\u200der \u2060w \u00adsoft
\ufeffbom in\ufeffside
rtl \u200f mark \u202e override
ctrl \u0001\u0007 x\u001cy\u001fz \u007f
esc \u001b[31mred\u001b[0m
line\u2028sep\u2029par\u0085next
a\\nb literal
😀 👩‍👩‍👧 ❤️ 1️⃣ 🏳️‍🌈
~~~ ··· ••• ™®©
𝔉𝔯𝔞𝔨 𝟙𝟚𝟛
১২৩৪৫৬৭ digits
a〜b゠c﹣d－e⸺f᠆g
""".strip().splitlines()

MOJIBAKE = """
cafÃ© au lait
L\u2019Ã©tÃ© Ã  la plage
â€œquotedâ€\u009d textâ€¦
donâ€™t stop
itâ€\u2122s fine
schÃ¶n grÃ¼n fuÃŸ
ÃƒÂ© doubly
Ð¿Ñ€Ð¸Ð²ÐµÑ‚ Ð¼Ð¸Ñ€
РїСЂРёРІРµС‚ РјРёСЂ
вЂњquotesвЂќ
Â£5 and Â 10Â°
ã‚«ã‚¿ã‚«ãƒŠ
ðŸ˜€ emoji
\u00e2\u0080\u009cc1 quotes\u00e2\u0080\u009d
c1 \u0093only\u0094 \u0085 dots
lossy â€œ like this â€\ufffd
â‚¬ 20 and â„¢
fÃ cil voilÃ  le
√©t√© ‚Äúmac‚Äù
├⌐t├⌐ cp437 ΓÇ£q
Ä™Ĺ‚Ăłw Ĺ»
Î±Î²Î³ Î”
normal: naïve café résumé œuvre
lower ã© â€ ã¼ ð¿
à² kannada à¹
æ\u00b7\u00b1åœ³
É™ ×—×ª×•×œ
Ø§Ù„Ø³Ù„Ø§Ù…
ā€œbaltic
β€™greek
ŕ kÄ…t
áº¡ viet\u00a0nam
¦bad¨ ¬x¯ ÷²
„low“ †dagger‡ ‰
\u00c3\u00a0 \u00c3 s \u00c3 quele
""".strip().splitlines()

MULTILINE = [
    "", " ", "\n", "\t\n ", "a\nb\n", "a\r\nb\rc", "first line\n\n  second   line\n", "<p>\n</p>\n<p>x</p>", "at 12:45\n", "&lt; one\n&eacute; two < &eacute;\n&eacute; three",
    "x" * 500 + "1" * 500, "a1" * 40, "-" * 50, "word " * 400, "http://" * 20, "(" * 30 + "x" + ")" * 30, "\"", "'", "''", "\"'x'\"", "\"a\nb\"", "_", "-", "- -", "..", ".", ". .",
    "<" * 5, "&" * 5, "&#" * 5, "a.b,c/d", "1.5,2.5/3", "e.g.this", "a,1 b/2 .3",
]

# Found by comparing random mixtures of the captions above.
FOUND = ["'e \u200d\"", "\"a\ufe0f.\"", "'w\u0323'"]

CAPTIONS = PROMPTS + IDS + ADDRESSES + HTML + SCRIPTS + MOJIBAKE + MULTILINE + FOUND
