"""Regular expressions that find the mentioned values of E2E's attributes, written from its human references.

They apply to a text after `places.normalize` and `places.delexicalize`, so that the Golden Curry is not Indian food and
Café Rouge is not a coffee shop. A match of `WORD_PATTERNS` or `NUMBER_PATTERNS` is a clear mention of a value. A match
of `WEAK_PATTERNS` is enough if the MR has the value and no other value is clearly mentioned. It never counts as a
mention of another value: the corpus calls any place a "restaurant", and "reasonable" prices may be low or moderate.
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
"""Values that human references use interchangeably: calling a price of less than £20 cheap is not an error."""

# A mention of a rating has the judgement before ("high customer rating") or after ("rated as low by guests").
_RATING_WORD = (
    r"\b(?:rat(?:ed|es?|ings?)|review(?:s|ed)?|scor(?:es?|ed)|rank\w*|recommend\w*|feedback|satisfaction|reputation)\b"
)
_RATER = r"(?:(?:customers?|costumers?|users?|consumers?|guests?|overall|quality|approval|satisfaction|service|star) )*"
_FILLER = (
    r"(?:(?:is|are|was|of|as|at|it|its|this|them|being|only|just|quite|very|rather|the|a|an|has|have|got|scale|range"
    r"|customers?|by|from|place|restaurant) )*"
)


def _rating(words: str) -> str:
    return rf"\b(?:{words}) {_RATER}{_RATING_WORD}|(?<!not ){_RATING_WORD} {_FILLER}(?:{words})\b(?! (?:pric|cost))"


def _star_rating(digit: str) -> str:
    out_of_five = r"(?:out ?)?(?:of|in) ?(?:a possible )?(?:5|five)|out (?:5|five)|/ ?5"
    return (
        rf"(?<![£\d.])\b(?:{digit})(?:\.0)? ?(?:{out_of_five})"
        rf"|(?<!of )(?<!out )(?<!/ )(?<!/)\b(?:{digit}) stars?\b"
        rf"|{_RATING_WORD} {_FILLER}(?:{digit})\b(?! ?(?:out|of|in|/))"
    )


_PRICE = r"(?:pric\w*|cost(?:s|ed|ing)?)\b"
_PRICE_IS = (
    r"(?:pric(?:e|es|ed|ing)|costs?)(?: ranges?| points?)? "
    r"(?:(?:is|are|be|being|can|fall|into|of|in|the|on|at|a|quite|rather|somewhat|fairly|very|#) )*"
)
_CHILD = r"(?:famil(?:ys?|ies)|kids?|child\w*|toddlers?|young|all ages)"
_NOT = (
    r"(?:not|no|none?|isnt|arent|doesnt|dont|wont|wouldnt|shouldnt|cannot|cant|never|without|unsuitable|nor|neither"
    r"|avoid|lacks?|un)"
)

WORD_PATTERNS: Mapping[str, Mapping[str, str]] = {
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
        rf"|\b{_PRICE_IS}(?:low|cheap)\b(?! {_RATER}{_RATING_WORD})",
        MIDDLE: rf"\bmoderate(?:ly)?\b(?! {_RATER}{_RATING_WORD})"
        r"|(?<!than )(?<!than the )(?<!above )(?<!below )"
        rf"\b(?:medium|mid|middle|averagely|averaged?) (?:range |level )?{_PRICE}"
        rf"|\b{_PRICE_IS}(?:average|mid|medium)\b(?! {_RATER}{_RATING_WORD})",
        HIGH: r"(?<!not )(?<!not too )(?<!moderately )\bexpensive\b"
        r"|\b(?:pric(?:ey|y|ier)|costly|upscale|upmarket|high(?:er)? end)\b"
        rf"|\b(?:high(?:er|ly)?|upper|exclusive|premium)(?: in| range)? {_PRICE}"
        rf"|\b(?:more|higher|above)(?: than)?(?: the)? average {_PRICE}"
        rf"|\b{_PRICE_IS}(?:high|higher|above average)\b(?! {_RATER}{_RATING_WORD})",
    },
    "customer rating": {
        LOW: _rating(
            r"low\w*|poor(?:ly)?|bad(?:ly)?|terrible|negative|(?:below|(?:less|lower|worse) than) average"
            r"|not(?: \w+){0,2} (?:high(?:ly)?|well|good|best)"
        )
        + rf"|\bnot {_RATING_WORD} (?:well|highly)",
        MIDDLE: _rating(
            r"(?<!below )(?<!above )(?<!than )average(?:ly)?"
            r"|moderate(?:ly)?|medium|middle|mediocre|ok(?:ay)?|fair(?:ly)?"
        ),
        HIGH: _rating(
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
"""Pattern of each value, or of each level of `LEVELS`, by attribute."""

NUMBER_PATTERNS: Mapping[str, Mapping[str, str]] = {
    "priceRange": {
        LOW: r"\b(?:less|lower|cheaper|under|below|up|maximum|max|within|no more)(?: \w+){0,3} £20\b(?! ?\w* ?£25)"
        r"|£20(?: \w+)? or (?:less|under|below)",
        MIDDLE: r"£20 ?(?:to |and |or |through )?£?25\b",
        HIGH: r"\b(?:more|over|above|higher|up|upwards|excess|greater|least|minimum|from|start\w*|exceed\w*)"
        r"(?: \w+){0,3} £30\b"
        r"|£30(?: \w+)? (?:or|and) (?:more|over|above|up|higher)|£30 ?(?:\+|plus)",
    },
    "customer rating": {
        LOW: _star_rating("1|one"),
        MIDDLE: _star_rating("3|three"),
        HIGH: _star_rating("5|five"),
        "another": _star_rating("2|two|4|four"),
    },
}
"""Patterns of numbers, which take precedence over words: "an average rating of 1 out of 5" mentions 1."""

_FAIR_PRICE = r"\b(?:reasonabl|affordabl|fair|decent|good|great)\w*(?: \w+)? pric|\b(?:reasonabl|affordabl)\w*"
WEAK_PATTERNS: Mapping[str, Mapping[str, str]] = {
    "eatType": {"restaurant": r"\brest\w*r\w*nts?\b|\bdin(?:er|ing)\b|\beatery\b|\bbistro\b|\bestablishment\b"},
    "priceRange": {
        LOW: rf"{_FAIR_PRICE}|£20",
        MIDDLE: rf"{_FAIR_PRICE}|£2[05]|\baverage\b|\bmid(?:dle)? range",
        HIGH: r"£30|more than(?: the)? average",
    },
    "customer rating": {
        LOW: r"\b(?:disliked|unpopular|not liked)\b",
        MIDDLE: _rating("good|decent|nice|positive") + r"|\baverage\b",
        HIGH: _rating("good|decent|nice|positive") + r"|\b(?:well liked|popular)\b",
    },
    "area": {"city centre": r"\bcity\b|\btown\b|\bcent(?:re|er)\b", "riverside": r"\briver\w*"},
}
"""Patterns that suffice for the value of the MR, and are no mention of any other value."""

# "North of the city centre" is not in the centre. `WEAK_PATTERNS` match the text that still contains this.
_ELSEWHERE = re.compile(
    r"\b(?:out ?side|outskirts|north|south|east|west|far|away|close|near|nearby|next|minutes?|walk|not(?: located)? in)"
    r"(?: of| from| to| by)?(?: the)?(?: cambridges?)? (?:(?:city|town) ?)?(?:cent(?:re|er)|river(?:side)?)\b"
)


def mentioned_values(text: str) -> dict[str, set[str]]:
    """Find the clearly mentioned values of each attribute except name and near in a delexicalized text."""
    text = _ELSEWHERE.sub("#", text)
    mentioned = {}
    for attribute, words in WORD_PATTERNS.items():
        numbers = _matching(NUMBER_PATTERNS.get(attribute, {}), text)
        mentioned[attribute] = numbers or _matching(words, text)
    if "no" in mentioned["familyFriendly"]:  # the negated patterns also match "yes"
        mentioned["familyFriendly"] = {"no"}
    return mentioned


def _matching(patterns: Mapping[str, str], text: str) -> set[str]:
    return {value for value, pattern in patterns.items() if re.search(pattern, text)}


def is_weakly_mentioned(attribute: str, value: str, text: str) -> bool:
    """Return whether a delexicalized text suffices for an MR with this value or level."""
    pattern = WEAK_PATTERNS.get(attribute, {}).get(value)
    return pattern is not None and re.search(pattern, text) is not None


def has_rule(attribute: str, value: str) -> bool:
    """Return whether there is a rule for the value; any name is allowed."""
    if attribute in ("name", "near"):
        return True
    return value in LEVELS.get(attribute, {**WORD_PATTERNS[attribute], **WEAK_PATTERNS.get(attribute, {})})
