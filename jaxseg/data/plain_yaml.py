"""YAML for settings: mappings, lists, words and whole numbers, and nothing that another reading would change.

PyYAML's own loader builds what aliases multiply ("billion laughs"), recurses into what is nested, reads 1:30 as ninety
and 010 as eight, and lets the last of two equal keys win. Here a text is read event by event, and these are errors.
"""

import re
from typing import Any

import yaml

_DEPTH = 3
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,9}", re.ASCII)


def parse(text: str) -> Any:
    """Dicts, lists, `str` and `int` of one YAML document; {} of an empty one. Keys are `str`, `7:` is '7'.

    Raises:
      ValueError: it is no YAML, or holds an alias, a tag, a key twice, more than three levels, a second document, or a
        word without quotes that YAML reads as something else: yes, null, 1.5, 1:30, 010.
    """
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        found = _document(events)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        # Beside its own errors PyYAML lets those of int(), chr() and its queues through.
        raise ValueError(" ".join(str(error).split())) from error
    return found


class _Refused(Exception):
    pass


def _document(events) -> Any:
    found: list[Any] = []
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent) and found:
            raise _refused(event, "a second document begins")
        if isinstance(event, yaml.NodeEvent):
            found.append(_node(event, events, 1))
    return found[0] if found and found[0] != "" else {}


def _node(event: yaml.NodeEvent, events, depth: int) -> Any:
    if isinstance(event, yaml.AliasEvent):
        raise _refused(event, f"*{event.anchor} is an alias: write out what it stands for")
    if event.tag not in (None, "!"):
        raise _refused(event, f"{event.tag} is a tag: leave it out")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if depth > _DEPTH:
        raise _refused(event, "it is nested too deeply")
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_node(item, events, depth + 1))
        return items
    entries: dict[str, Any] = {}
    while not isinstance(key := next(events), yaml.MappingEndEvent):
        if not isinstance(key, yaml.ScalarEvent):
            raise _refused(key, "a key must be a word or a number")
        name = str(_scalar(key))
        if name in entries:
            raise _refused(key, f"{_brief(name)} comes twice")
        entries[name] = _node(next(events), events, depth + 1)
    return entries


def _scalar(event: yaml.ScalarEvent) -> str | int:
    value = event.value
    if not event.implicit[0]:
        return value  # in quotes
    if _WHOLE.fullmatch(value):
        return int(value)
    # An empty entry is none, `names:` for one; an empty document is.
    if yaml.SafeLoader("").resolve(yaml.ScalarNode, value, (True, False)) != "tag:yaml.org,2002:str" and value:
        raise _refused(event, f"{_brief(value)} is no word to YAML: put it in quotes, or write a whole number")
    return value


def _brief(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


def _refused(event: yaml.Event, what: str) -> _Refused:
    return _Refused(f"line {event.start_mark.line + 1}: {what}")
