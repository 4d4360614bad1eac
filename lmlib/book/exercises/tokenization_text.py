"""Exercises on what text is before it is tokens: code points, UTF-8, special tokens, pre-tokens."""

import re
import unicodedata

from lmlib.book.exercises.machinery import Case, Exercise, Wrong

# ---- tokenization/code-points


def code_points(text: str) -> list[str]:
    return [f"U+{ord(character):04X} {unicodedata.name(character, '(no name)')}" for character in text]


def _from_bytes(text: str) -> list[str]:
    return [f"U+{byte:04X} {unicodedata.name(chr(byte), '(no name)')}" for byte in text.encode()]


def _without_padding(text: str) -> list[str]:
    return [f"U+{ord(c):X} {unicodedata.name(c, '(no name)')}" for c in text]


def _nameless_refused(text: str) -> list[str]:
    return [f"U+{ord(c):04X} {unicodedata.name(c)}" for c in text]


CODE_POINTS = Exercise(
    name="tokenization/code-points",
    title="What a string is made of",
    task="""
A Python string is a sequence of Unicode code points. Write `code_points(text)`: for each of them, one
string such as `U+0041 LATIN CAPITAL LETTER A`: the number in hexadecimal with at least four digits, a
space, and the name that the Unicode standard gives it. Some have no name; for those write `(no name)`.

Before you start, look at `chr(0)`: what does `repr(chr(0))` show, what does `print(chr(0))` show, and
what becomes of `"this is" + chr(0) + "a test"` when it is printed?
""",
    difficulty=1,
    minutes=5,
    starter="""
import unicodedata


def code_points(text: str) -> list[str]:
    raise NotImplementedError
""",
    hints=(
        "`ord` gives the number of a character, `chr` the character of a number.",
        'A format specification does the digits: `f"{number:04X}"`.',
        "`unicodedata.name` takes a second argument: what to return for a character without a name.",
    ),
    solution=code_points,
    remark="""
`chr(0)` is a character like any other: `repr` shows it as `'\\x00'`, printing sends it to the terminal,
which shows nothing, and a string holds it in its middle without ending there, as it would in C.
""",
    cases=(
        Case("one letter", ("A",), ["U+0041 LATIN CAPITAL LETTER A"]),
        Case(
            "beyond ASCII",
            ("é€",),
            ["U+00E9 LATIN SMALL LETTER E WITH ACUTE", "U+20AC EURO SIGN"],
            "Go through the characters of the string, not through the bytes of its encoding.",
        ),
        Case(
            "five digits", ("🙂",), ["U+1F642 SLIGHTLY SMILING FACE"], "At least four digits, more if needed."
        ),
        Case(
            "a character without a name",
            ("\x00",),
            ["U+0000 (no name)"],
            "Control characters have no name: `unicodedata.name` needs to be told what to return.",
        ),
        Case(
            "one picture, several code points",
            ("e\u0301",),
            ["U+0065 LATIN SMALL LETTER E", "U+0301 COMBINING ACUTE ACCENT"],
            "Do not normalise: an e followed by a combining accent is two code points.",
        ),
        Case("no text", ("",), []),
    ),
    wrong=(
        Wrong(_from_bytes, "not through the bytes"),
        Wrong(_without_padding, "U+0041"),
        Wrong(_nameless_refused, "Control characters have no name"),
    ),
)

# ---- tokenization/encoded-sizes


def encoded_sizes(text: str) -> dict[str, int]:
    names = {"UTF-8": "utf-8", "UTF-16": "utf-16-le", "UTF-32": "utf-32-le"}
    return {name: len(text.encode(codec)) for name, codec in names.items()}


def _with_byte_order_mark(text: str) -> dict[str, int]:
    return {name: len(text.encode(name)) for name in ("UTF-8", "UTF-16", "UTF-32")}


def _by_characters(text: str) -> dict[str, int]:
    return {"UTF-8": len(text), "UTF-16": 2 * len(text), "UTF-32": 4 * len(text)}


ENCODED_SIZES = Exercise(
    name="tokenization/encoded-sizes",
    title="Why UTF-8",
    task="""
Write `encoded_sizes(text)`: a dictionary with the number of bytes that `text` takes in `"UTF-8"`,
`"UTF-16"` and `"UTF-32"`, without a byte order mark. Then try it on a page of English, on Chinese and on
source code, and say which encoding you would train a byte-level tokenizer on. Size is one reason; what
are the others?
""",
    difficulty=1,
    minutes=10,
    starter="""
def encoded_sizes(text: str) -> dict[str, int]:
    raise NotImplementedError
""",
    hints=(
        "`text.encode(codec)` gives the bytes in that encoding; `len` counts them.",
        '`"".encode("utf-16")` is not empty. Look at what it holds.',
        "The codecs `utf-16-le` and `utf-32-le` say the byte order in their name, and write no mark.",
    ),
    solution=encoded_sizes,
    remark="""
UTF-8 is the shortest for text that is mostly ASCII, as most of the web and all source code is. In UTF-16
and UTF-32 every English letter brings zero bytes, which a tokenizer would have to learn to merge away
first. Nearly all text is stored as UTF-8 already, ASCII bytes mean themselves in it, and a reader that
starts in the middle finds the next character's start. For Chinese, UTF-16 is shorter (2 bytes a
character, not 3).
""",
    cases=(
        Case(
            "ASCII", ("hello",), {"UTF-8": 5, "UTF-16": 10, "UTF-32": 20}, "Is a byte order mark counted in?"
        ),
        Case(
            "two and three bytes",
            ("é你",),
            {"UTF-8": 5, "UTF-16": 4, "UTF-32": 8},
            "In UTF-8 a character takes 1 to 4 bytes; count bytes of the encoding, not characters.",
        ),
        Case(
            "beyond the first plane",
            ("🙂",),
            {"UTF-8": 4, "UTF-16": 4, "UTF-32": 4},
            "UTF-16 writes characters above U+FFFF as two halves of 2 bytes each.",
        ),
        Case("no text", ("",), {"UTF-8": 0, "UTF-16": 0, "UTF-32": 0}, "A byte order mark is left out."),
    ),
    wrong=(
        Wrong(_with_byte_order_mark, "byte order mark"),
        Wrong(_by_characters, "count bytes of the encoding"),
    ),
)

# ---- tokenization/broken-decoder


def decode_byte_by_byte(data: bytes) -> str:
    return "".join(bytes([byte]).decode("utf-8") for byte in data)


def break_decoder() -> tuple[bytes, bytes]:
    return "é".encode(), b"\xc3\x28"


def _ascii_only() -> tuple[bytes, bytes]:
    return b"hello", b"\xc3\x28"


def _second_is_valid() -> tuple[bytes, bytes]:
    return "é".encode(), "ß".encode()


def _judged(answer: object) -> list[str]:
    """What the two byte strings do, in words, so that the check can say it."""
    if not (
        isinstance(answer, tuple) and len(answer) == 2 and all(isinstance(part, bytes) for part in answer)
    ):
        return ["a tuple of two bytes objects is asked for"]
    first, second = answer
    return [
        "first: UTF-8" if _decodes(first) else "first: no UTF-8 at all",
        "first: the decoder fails on it" if not _survives(first) else "first: the decoder gets it right",
        "second: two bytes" if len(second) == 2 else f"second: {len(second)} bytes",
        "second: no UTF-8" if not _decodes(second) else "second: UTF-8",
    ]


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _survives(data: bytes) -> bool:
    try:
        decode_byte_by_byte(data)
    except UnicodeDecodeError:
        return False
    return True


BROKEN_DECODER = Exercise(
    name="tokenization/broken-decoder",
    title="Break a decoder",
    task="""
`decode_byte_by_byte` below decodes UTF-8, and passes its author's tests, which are all in English. Write
`break_decoder()`, which returns two byte strings:

- the encoding of some text on which it fails;
- two bytes that are not UTF-8 by themselves: that no decoder, right or wrong, can turn into characters.

Say for each why.
""",
    difficulty=2,
    minutes=10,
    starter="""
def break_decoder() -> tuple[bytes, bytes]:
    raise NotImplementedError
""",
    given=(decode_byte_by_byte,),
    hints=(
        "Which characters take more than one byte?",
        "In UTF-8, a byte that starts with the bits 10 continues a character; it never starts one.",
        "A byte that starts with 110 announces one such byte after it. What if something else follows?",
    ),
    solution=break_decoder,
    remark="""
`é` is two bytes, neither of which is a character by itself. `C3` announces one continuation byte, and
`28`, an opening bracket, is none. A token of a byte-level tokenizer may end between such bytes: so a list
of tokens is joined as bytes first and decoded once.
""",
    cases=(
        Case(
            "both do what is asked",
            (),
            ["first: UTF-8", "first: the decoder fails on it", "second: two bytes", "second: no UTF-8"],
            "The first must be valid UTF-8 that needs several bytes a character; the second must be invalid.",
            then=_judged,
        ),
    ),
    wrong=(
        Wrong(_ascii_only, "the decoder gets it right"),
        Wrong(_second_is_valid, "second: UTF-8"),
    ),
)

# ---- tokenization/decode-utf-8


def decode_utf8(data: bytes) -> list[int]:
    code_points, position = [], 0
    while position < len(data):
        lead = data[position]
        if lead < 0x80:
            length, value, smallest = 1, lead, 0
        elif 0xC0 <= lead < 0xE0:
            length, value, smallest = 2, lead & 0x1F, 0x80
        elif 0xE0 <= lead < 0xF0:
            length, value, smallest = 3, lead & 0x0F, 0x800
        elif 0xF0 <= lead < 0xF8:
            length, value, smallest = 4, lead & 0x07, 0x10000
        else:
            raise ValueError(f"byte {lead:#04x} at {position} starts no character")
        tail = data[position + 1 : position + length]
        if len(tail) < length - 1 or any(byte & 0xC0 != 0x80 for byte in tail):
            raise ValueError(f"the character at {position} lacks a continuation byte")
        for byte in tail:
            value = value << 6 | byte & 0x3F
        if value < smallest or value > 0x10FFFF or 0xD800 <= value < 0xE000:
            raise ValueError(f"the bytes at {position} spell {value:#x}, which must not be spelt so")
        code_points.append(value)
        position += length
    return code_points


def _lead_not_masked(data: bytes) -> list[int]:
    found, position = [], 0
    while position < len(data):
        lead = data[position]
        length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        value = lead
        for byte in data[position + 1 : position + length]:
            value = value << 6 | byte & 0x3F
        found.append(value)
        position += length
    return found


def _trusting(data: bytes) -> list[int]:
    found, position = [], 0
    while position < len(data):
        lead = data[position]
        length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        value = lead if length == 1 else lead & (0xFF >> (length + 1))
        for byte in data[position + 1 : position + length]:
            value = value << 6 | byte & 0x3F
        found.append(value)
        position += length
    return found


def _overlong_accepted(data: bytes) -> list[int]:
    position = 0
    while position < len(data):
        lead = data[position]
        length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        tail = data[position + 1 : position + length]
        if 0x80 <= lead < 0xC0 or len(tail) < length - 1 or any(byte & 0xC0 != 0x80 for byte in tail):
            raise ValueError("not UTF-8")
        position += length
    return _trusting(data)


DECODE_UTF8 = Exercise(
    name="tokenization/decode-utf-8",
    title="Decode UTF-8 by hand",
    task="""
Write `decode_utf8(data)`: the code points, as integers, that the bytes spell, without `bytes.decode`. The
first byte of a character says how many follow; each that follows starts with the bits `10` and brings six
bits.

- `0xxxxxxx`: one byte, seven bits
- `110xxxxx 10xxxxxx`: eleven bits
- `1110xxxx 10xxxxxx 10xxxxxx`: sixteen bits
- `11110xxx 10xxxxxx 10xxxxxx 10xxxxxx`: twenty-one bits

Raise ValueError for bytes that are not UTF-8: a continuation byte where a character should start, one
that is missing, a character spelt with more bytes than it needs, a number from D800 to DFFF or above
10FFFF.
""",
    difficulty=3,
    minutes=25,
    starter="""
def decode_utf8(data: bytes) -> list[int]:
    raise NotImplementedError
""",
    hints=(
        "Iterating over `bytes` gives integers. `lead & 0b00011111` keeps the five low bits.",
        "Shift what you have by six bits, then put the next six in: `value << 6 | byte & 0b00111111`.",
        "A byte continues a character when `byte & 0b11000000 == 0b10000000`.",
        "Two bytes must spell at least 0x80, three at least 0x800, four at least 0x10000.",
    ),
    solution=decode_utf8,
    remark="""
Spelling a character with more bytes than it needs is refused because two spellings of one text would pass
a filter that looks for one of them. So not every sequence of tokens is text, although every text is a
sequence of tokens.
""",
    cases=(
        Case("ASCII", (b"Hi!",), [72, 105, 33]),
        Case(
            "two bytes",
            ("é".encode(),),
            [0xE9],
            "Take the length mark off the first byte: only the bits behind it count.",
        ),
        Case("three bytes", ("€".encode(),), [0x20AC]),
        Case("four bytes", ("🙂".encode(),), [0x1F642]),
        Case("mixed", ("aé€🙂z".encode(),), [97, 0xE9, 0x20AC, 0x1F642, 122]),
        Case(
            "starts with a continuation byte",
            (b"\x80",),
            raises=ValueError,
            message="A byte of the form 10xxxxxx cannot start a character.",
        ),
        Case(
            "cut short",
            (b"\xe2\x82",),
            raises=ValueError,
            message="Three bytes are announced, two are there.",
        ),
        Case(
            "no continuation",
            (b"\xc3(",),
            raises=ValueError,
            message="What follows must have the form 10xxxxxx.",
        ),
        Case(
            "longer than needed",
            (b"\xc0\xaf",),
            raises=ValueError,
            message="These two bytes spell 0x2F, which fits into one byte: such spellings are forbidden.",
        ),
        Case(
            "half of a UTF-16 pair",
            (b"\xed\xa0\x80",),
            raises=ValueError,
            message="D800 to DFFF are no characters.",
        ),
        Case("too large", (b"\xf4\x90\x80\x80",), raises=ValueError, message="Unicode ends at 10FFFF."),
    ),
    wrong=(
        Wrong(_lead_not_masked, "Take the length mark off"),
        Wrong(_trusting, "cannot start a character"),
        Wrong(_overlong_accepted, "fits into one byte"),
    ),
)

# ---- tokenization/special-tokens


def split_specials(text: str, specials: list[str]) -> list[str]:
    if not specials:
        return [text] if text else []
    longest_first = sorted(specials, key=len, reverse=True)
    pattern = "(" + "|".join(re.escape(special) for special in longest_first) + ")"
    return [part for part in re.split(pattern, text) if part]


def _in_given_order(text: str, specials: list[str]) -> list[str]:
    pattern = "(" + "|".join(map(re.escape, specials)) + ")"
    return [part for part in re.split(pattern, text) if part] if specials else [text] * bool(text)


def _not_escaped(text: str, specials: list[str]) -> list[str]:
    pattern = "(" + "|".join(sorted(specials, key=len, reverse=True)) + ")"
    return [part for part in re.split(pattern, text) if part]


def _thrown_away(text: str, specials: list[str]) -> list[str]:
    pattern = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
    return [part for part in re.split(pattern, text) if part]


END, TWICE = "<|end|>", "<|end|><|end|>"

SPECIAL_TOKENS = Exercise(
    name="tokenization/special-tokens",
    title="Special tokens come first",
    task="""
`<|endoftext|>` must become one token wherever it stands, whatever was learned from text. So an encoder
first cuts the text at the special tokens. Write `split_specials(text, specials)`: the parts of `text` in
order, each either one of `specials` or ordinary text between them, without empty parts. Joined, they give
`text` again. Where two special tokens match at the same place, the longer one is meant.
""",
    difficulty=3,
    minutes=20,
    starter="""
import re


def split_specials(text: str, specials: list[str]) -> list[str]:
    raise NotImplementedError
""",
    hints=(
        "`re.split` with a group in the pattern, `(...)`, keeps what it split at.",
        "`|` and `.` mean something in a pattern; `re.escape` takes the meaning away.",
        "In `a|b` the first alternative that matches wins, not the longest: mind their order.",
        "With no special token the pattern would be empty, and match everywhere.",
    ),
    solution=split_specials,
    cases=(
        Case("nothing special", ("plain text", [END]), ["plain text"]),
        Case(
            "in the middle",
            (f"one{END}two", [END]),
            ["one", END, "two"],
            "Keep the special token itself as a part. If it fell into pieces: is it escaped in your pattern?",
        ),
        Case("at both ends", (f"{END}text{END}", [END]), [END, "text", END], "Leave out empty parts."),
        Case(
            "the longer one is meant",
            (f"a{TWICE}b", [END, TWICE]),
            ["a", TWICE, "b"],
            "Two match here; the pattern must try the longer one first.",
        ),
        Case("with the sign of a pattern", ("1+1.5", ["+", "."]), ["1", "+", "1", ".", "5"], "Escape them."),
        Case(
            "no special tokens",
            ("text", []),
            ["text"],
            "An empty pattern matches between any two characters.",
        ),
        Case("no text", ("", [END]), []),
    ),
    wrong=(
        Wrong(_in_given_order, "longer one first"),
        Wrong(_not_escaped, "escaped in your pattern"),
        Wrong(_thrown_away, "Keep the special token"),
    ),
)

# ---- tokenization/pre-tokens


def pretokenize(text: str) -> list[str]:
    pattern = (
        r"'(?:[sdmt]|ll|ve|re)"  # English contractions
        r"| ?[^\W\d_]+"  # letters of any script, with the space before them
        r"| ?\d+"  # digits
        r"| ?(?:[^\s\w]|_)+"  # everything else that can be seen
        r"|\s+(?!\S)"  # a run of white space, but for the last before a word
        r"|\s+"
    )
    return re.findall(pattern, text)


def _by_split(text: str) -> list[str]:
    return text.split()


def _ascii_letters(text: str) -> list[str]:
    return re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?(?:[^\sA-Za-z0-9])+|\s+(?!\S)|\s+", text)


def _greedy_space(text: str) -> list[str]:
    return re.findall(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+", text)


PRE_TOKENS = Exercise(
    name="tokenization/pre-tokens",
    title="Cut text before merging",
    task="""
BPE merges only inside pre-tokens, so that no token holds the end of one word and the start of the next.
Write `pretokenize(text)` with the standard library's `re`, after GPT-2's pattern. At each place, the
first of these that matches is the next pre-token:

- one of `'s 'd 'm 't 'll 've 're`;
- a run of letters, with at most one space before it;
- a run of digits, with at most one space before it;
- a run of anything else but white space, with at most one space before it;
- a run of white space; if a visible character follows, the run ends one character before it.

A single white space character that is in none of these is a pre-token of its own. Joined, they give the
text.
""",
    difficulty=3,
    minutes=25,
    starter="""
import re


def pretokenize(text: str) -> list[str]:
    raise NotImplementedError
""",
    hints=(
        "`re.findall` with alternatives joined by `|` does the whole job; `(?:...)` only groups.",
        r"`\w` is letters, digits and the underscore; so `[^\W\d_]` is a letter of any script.",
        r"`\s+(?!\S)` matches white space that no visible character follows: `+` gives one back.",
        r"The last alternative, `\s+`, catches the single white space that is left over.",
    ),
    solution=pretokenize,
    remark=r"""
GPT-2's own pattern says `\p{L}` and `\p{N}`, which need the `regex` package; `\d` misses numbers that are
not decimal digits, such as `½`. The library's `Tokenizer` uses the real patterns.
""",
    cases=(
        Case("words", ("the cat sat",), ["the", " cat", " sat"], "The space belongs to the word after it."),
        Case("numbers and signs", ("x1+22!?",), ["x", "1", "+", "22", "!?"]),
        Case("contractions", ("don't they'll",), ["don", "'t", " they", "'ll"]),
        Case("letters of any script", ("naïve 你好",), ["naïve", " 你好"], "Letters are not only A to Z."),
        Case(
            "several spaces",
            ("a   b",),
            ["a", "  ", " b"],
            "The last space before a word belongs to the word; those before it are one pre-token.",
        ),
        Case("line breaks", ("a\n\nb \n",), ["a", "\n", "\n", "b", " \n"]),
        Case(
            "underscore", ("a_b",), ["a", "_", "b"], "The underscore is neither letter nor digit nor space."
        ),
        Case("nothing is lost", ("\t½ 🙂’s_ 3.14  ",), ["\t", "½", " 🙂’", "s", "_", " 3", ".", "14", "  "]),
        Case("no text", ("",), []),
    ),
    wrong=(
        Wrong(_by_split, "space belongs to the word after it"),
        Wrong(_ascii_letters, "not only A to Z"),
        Wrong(_greedy_space, "last space before a word"),
    ),
)
