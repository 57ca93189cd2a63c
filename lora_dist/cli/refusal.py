"""What tyro refuses, as one sentence instead of its framed box.

tyro gives the reason only in what it prints, so this reads the box. Text of an unknown kind is kept as it is.
"""

import re

from lora_dist.errors import UserError

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_RULE = re.compile(r"[╰╯─ -]{3,}")
"""A line between the parts of the box; without UTF-8 it is of hyphens, and the box has no sides."""


def refusal(stop: SystemExit, printed: str, name: str) -> UserError:
    """Return the user error for which tyro ended.

    Args:
        stop: how it ended; an error of a settings class is in its context, and is returned unchanged.
        printed: what it wrote to stderr.
        name: the command as typed, for its help.
    """
    cause: BaseException | None = stop
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__context__
    return UserError(f"{_sentence(printed, name)} (see lora-dist {name} --help)")


def _sentence(printed: str, name: str) -> str:
    """Say what is wrong in the form `flag is value: remedy`, where the box is of a known kind."""
    lines = [line[2:].rstrip(" │") for line in _COLOUR.sub("", printed).splitlines()[1:]]  # the first is a title
    parts = "\n".join("\n" if _RULE.fullmatch(line) else line for line in lines).strip().split("\n\n")
    text, rest = " ".join(parts[0].split()), "\n".join(parts[1:])
    if found := re.fullmatch(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)\.", text):
        return f"{found[2]} is {found[1]}: choose from {found[3].replace(chr(39), '').rstrip(',')}"
    if found := re.fullmatch(r"Error parsing (--\S+): .*?(?:\[('.*?)\].*|: '(.*)')", text):
        usage = re.search(rf"^ *{re.escape(found[1])} (.*)$", rest, re.MULTILINE)
        return f"{found[1]} is {_values(found[2] or found[3])}: give {_kind(usage[1] if usage else '')}"
    if found := re.fullmatch(r"Missing value for argument '(.*)'\. Expected .*", text):
        return f"{found[1]} has no value: give one after it"
    if found := re.fullmatch(r"Unrecognized options: (.*)", text):
        words = found[1].split(", ")
        unknown = [word for word in words if word.startswith("-")] or words
        meant = re.findall(r"^ *(--[^\s,]+)", rest, re.MULTILINE)
        text = f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} unknown"
        return text + (f": did you mean {', '.join(meant)}?" if meant else "")
    if text.startswith("Missing from "):
        missing = re.findall(r"^ {4}(\S.*?) *$", parts[0], re.MULTILINE)
        return f"{name} needs {', '.join(missing)}"
    return text


def _values(text: str) -> str:
    """Write `'1', 'a'` as `1 a`."""
    return text.replace("', '", " ").strip("'")


def _kind(usage: str) -> str:
    """Say what tyro's `{None}|INT` stands for."""
    kind = "whole number" if "INT" in usage else "number"
    return ("None or " if "None" in usage else "") + (f"{kind}s" if "..." in usage else f"a {kind}")
