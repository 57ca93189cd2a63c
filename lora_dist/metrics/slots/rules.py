"""What a text says of E2E's eight attributes: regular expressions, written from the human references of the corpus.

They apply to a text as `places.normalise` returns it, after `places.cut` has taken out the names of places, so that the
Golden Curry is not Indian and Café Rouge no coffee shop. A value of `WORDS` or `NUMBERS` is one that the text clearly
says. A value of `LOOSE` is one that the text says well enough if the MR has it and the text clearly says no other; it
never counts as another value: "restaurant" is this corpus' word for any place, and "reasonable" prices may be low or
middling.
"""

import re
from collections.abc import Mapping

LOW, MIDDLE, HIGH = "low", "middle", "high"
LEVELS: Mapping[str, Mapping[str, str]] = {
    "priceRange": {
        "cheap": LOW,
        "less than £20": LOW,
        "moderate": MIDDLE,
        "£20-25": MIDDLE,
        "high": HIGH,
        "more than £30": HIGH,
    },
    "customer rating": {
        "low": LOW,
        "1 out of 5": LOW,
        "average": MIDDLE,
        "3 out of 5": MIDDLE,
        "high": HIGH,
        "5 out of 5": HIGH,
    },
}
"""Values that people use for each other: to call a price of less than £20 cheap is no error."""

# A rating is a word for it with a judgement before it ("high customer rating") or after it ("rated as low by guests").
_RATE = (
    r"\b(?:rat(?:ed|es?|ings?)|review(?:s|ed)?|scor(?:es?|ed)|rank\w*|recommend\w*|feedback|satisfaction|reputation)\b"
)
_WHOSE = r"(?:(?:customers?|costumers?|users?|consumers?|guests?|overall|quality|approval|satisfaction|service|star) )*"
_LINK = (
    r"(?:(?:is|are|was|of|as|at|it|its|this|them|being|only|just|quite|very|rather|the|a|an|has|have|got|scale|range"
    r"|customers?|by|from|place|restaurant) )*"
)


def _judged(words: str) -> str:
    return rf"\b(?:{words}) {_WHOSE}{_RATE}|(?<!not ){_RATE} {_LINK}(?:{words})\b(?! (?:pric|cost))"


def _stars(digit: str) -> str:
    out_of_five = r"(?:out ?)?(?:of|in) ?(?:a possible )?(?:5|five)|out (?:5|five)|/ ?5"
    return (
        rf"(?<![£\d.])\b(?:{digit})(?:\.0)? ?(?:{out_of_five})"
        rf"|(?<!of )(?<!out )(?<!/ )(?<!/)\b(?:{digit}) stars?\b"
        rf"|{_RATE} {_LINK}(?:{digit})\b(?! ?(?:out|of|in|/))"
    )


_PRICE = r"(?:pric\w*|cost(?:s|ed|ing)?)\b"
_PRICED = (
    r"(?:pric(?:e|es|ed|ing)|costs?)(?: ranges?| points?)? "
    r"(?:(?:is|are|be|being|can|fall|into|of|in|the|on|at|a|quite|rather|somewhat|fairly|very|#) )*"
)
_CHILD = r"(?:famil(?:ys?|ies)|kids?|child\w*|toddlers?|young|all ages)"
_NOT = (
    r"(?:not|no|none?|isnt|arent|doesnt|dont|wont|wouldnt|shouldnt|cannot|cant|never|without|unsuitable|nor|neither"
    r"|avoid|lacks?|un)"
)

WORDS: Mapping[str, Mapping[str, str]] = {
    "eatType": {"coffee shop": r"\bcoff?ee?\b|\bcafes?\b", "pub": r"\bpubs?\b|\btavern\b|\bbar\b"},
    "food": {
        "Chinese": r"\bchinese\b",
        "English": r"\b(?:english|british)\b(?! £)|\bfish and chips\b",
        "Fast food": r"\bfast ?foods?\b|\b(?:ham)?burgers?\b",
        "French": r"\bfrench\b",
        "Indian": r"\bindian\b|\bcurr(?:y|ies)\b",
        "Italian": r"\bitalian\b|\bpastas?\b|\bpizzas?\b|\bspaghetti\b",
        "Japanese": r"\bjapanese\b|\bsushi\b",
    },
    "priceRange": {
        LOW: r"\b(?:cheap(?:ly|er)?|inexpensive\w*|budget|bargain|not (?:too )?expensive)\b"
        rf"|\b(?:low(?:er|est)? (?:in |end )?|(?:less than|below) average ){_PRICE}"
        rf"|\b{_PRICED}(?:low|cheap)\b(?! {_WHOSE}{_RATE})",
        MIDDLE: rf"\bmoderate(?:ly)?\b(?! {_WHOSE}{_RATE})"
        r"|(?<!than )(?<!than the )(?<!above )(?<!below )"
        rf"\b(?:medium|mid|middle|averagely|averaged?) (?:range |level )?{_PRICE}"
        rf"|\b{_PRICED}(?:average|mid|medium)\b(?! {_WHOSE}{_RATE})",
        HIGH: r"(?<!not )(?<!not too )(?<!moderately )\bexpensive\b"
        r"|\b(?:pric(?:ey|y|ier)|costly|upscale|upmarket|high(?:er)? end)\b"
        rf"|\b(?:high(?:er|ly)?|upper|exclusive|premium)(?: in| range)? {_PRICE}"
        rf"|\b(?:more|higher|above)(?: than)?(?: the)? average {_PRICE}"
        rf"|\b{_PRICED}(?:high|higher|above average)\b(?! {_WHOSE}{_RATE})",
    },
    "customer rating": {
        LOW: _judged(
            r"low\w*|poor(?:ly)?|bad(?:ly)?|terrible|negative|(?:below|(?:less|lower|worse) than) average"
            r"|not(?: \w+){0,2} (?:high(?:ly)?|well|good|best)"
        )
        + rf"|\bnot {_RATE} (?:well|highly)",
        MIDDLE: _judged(
            r"(?<!below )(?<!above )(?<!than )average(?:ly)?"
            r"|moderate(?:ly)?|medium|middle|mediocre|ok(?:ay)?|fair(?:ly)?"
        ),
        HIGH: _judged(
            r"(?<!not )(?<!not a )(?<!not the )(?<!got the )(?<!not very )"
            r"(?:high\w*|excellent|great\w*|amazing|top|well|best|perfect|outstanding|superb|fantastic|above average)"
        ),
    },
    "area": {
        "riverside": r"\briver\w*|\bwater(?:side|front)\b",
        "city centre": r"\b(?:city|town)? ?cent(?:re|er)\b|\bdowntown\b|\bheart of\b|\bmiddle of\b|\bcentral(?:ly)?\b",
    },
    "familyFriendly": {
        "no": rf"\b{_NOT}(?! only)(?: (?!(?:but|and|its?|is|(?<!friendly )with)\b)\w+){{0,8}} {_CHILD}\b"
        rf"|(?<!children and )(?<!kids and )\badults?\b(?! (?:and|or) {_CHILD}| as well)"
        rf"|\b(?:mature|childless|(?:child|kids?|children|family) free|leave (?:the |your )?{_CHILD})\b"
        rf"|\bunfriendly (?:for |to )?{_CHILD}"
        rf"|\b{_CHILD}(?: (?!and\b|but\b)\w+){{0,3}} (?:not|arent|isnt|unfriendly|prohibited|discouraged|unwelcome)\b",
        "yes": rf"\b{_CHILD}\b",
    },
}
"""The pattern of each value, or of each level of `LEVELS`, by attribute."""

NUMBERS: Mapping[str, Mapping[str, str]] = {
    "priceRange": {
        LOW: r"\b(?:less|lower|cheaper|under|below|up|maximum|max|within|no more)(?: \w+){0,3} £20\b(?! ?\w* ?£25)"
        r"|£20(?: \w+)? or (?:less|under|below)",
        MIDDLE: r"£20 ?(?:to |and |or |through )?£?25\b",
        HIGH: r"\b(?:more|over|above|higher|up|upwards|excess|greater|least|minimum|from|start\w*|exceed\w*)"
        r"(?: \w+){0,3} £30\b"
        r"|£30(?: \w+)? (?:or|and) (?:more|over|above|up|higher)|£30 ?(?:\+|plus)",
    },
    "customer rating": {
        LOW: _stars("1|one"),
        MIDDLE: _stars("3|three"),
        HIGH: _stars("5|five"),
        "another": _stars("2|two|4|four"),
    },
}
"""Likewise; where a text gives a number, words do not count: in "an average rating of 1 out of 5" it is the 1."""

_FAIR = r"\b(?:reasonabl|affordabl|fair|decent|good|great)\w*(?: \w+)? pric|\b(?:reasonabl|affordabl)\w*"
LOOSE: Mapping[str, Mapping[str, str]] = {
    "eatType": {"restaurant": r"\brest\w*r\w*nts?\b|\bdin(?:er|ing)\b|\beatery\b|\bbistro\b|\bestablishment\b"},
    "priceRange": {
        LOW: rf"{_FAIR}|£20",
        MIDDLE: rf"{_FAIR}|£2[05]|\baverage\b|\bmid(?:dle)? range",
        HIGH: r"£30|more than(?: the)? average",
    },
    "customer rating": {
        LOW: r"\b(?:disliked|unpopular|not liked)\b",
        MIDDLE: _judged("good|decent|nice|positive") + r"|\baverage\b",
        HIGH: _judged("good|decent|nice|positive") + r"|\b(?:well liked|popular)\b",
    },
    "area": {"city centre": r"\bcity\b|\btown\b|\bcent(?:re|er)\b", "riverside": r"\briver\w*"},
}
"""Patterns that are enough for the value of the MR, and say nothing of any other."""

# "North of the city centre" is not in it. `LOOSE` looks at the text before this is taken out.
_ELSEWHERE = re.compile(
    r"\b(?:out ?side|outskirts|north|south|east|west|far|away|close|near|nearby|next|minutes?|walk|not(?: located)? in)"
    r"(?: of| from| to| by)?(?: the)?(?: cambridges?)? (?:(?:city|town) ?)?(?:cent(?:re|er)|river(?:side)?)\b"
)


def said_values(text: str) -> dict[str, set[str]]:
    """The values that a normalised text without places clearly says, by attribute (all but name and near)."""
    text = _ELSEWHERE.sub("#", text)
    said = {}
    for attribute, words in WORDS.items():
        numbers = _matching(NUMBERS.get(attribute, {}), text)
        said[attribute] = numbers or _matching(words, text)
    if "no" in said["familyFriendly"]:  # what negates it also says it
        said["familyFriendly"] = {"no"}
    return said


def _matching(patterns: Mapping[str, str], text: str) -> set[str]:
    return {value for value, pattern in patterns.items() if re.search(pattern, text)}


def is_said_loosely(attribute: str, value: str, text: str) -> bool:
    """Whether a normalised text without places says enough for an MR that has this value (or level)."""
    pattern = LOOSE.get(attribute, {}).get(value)
    return pattern is not None and re.search(pattern, text) is not None


def is_known(attribute: str, value: str) -> bool:
    """Whether there is a rule for the value; names may be any."""
    if attribute in ("name", "near"):
        return True
    return value in LEVELS.get(attribute, {**WORDS[attribute], **LOOSE.get(attribute, {})})
