"""Sliders and questions as HTML that works without a kernel. All pictures and words come from `qatcourse.viz.widgets`.

`static/book.js` only shows the frame that a slider stands at, and the reply to a choice.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from pathlib import Path

from qatcourse.viz.widgets import Prediction, markup
from qatlib.files import write_atomic


def slider(figure: dict, folder: Path, up: str, name: str) -> str:
    """The HTML of a slider (`frames.positions`). Its frames go into `folder`, which the page reaches as `up` + "frames/".

    `name` is unique on the page. Equal frames are stored once, and equal sliders of two pages share one file.
    """
    controls, frames = figure["controls"], figure["frames"]
    at = 0
    for control in controls:
        at = at * len(control["choices"]) + control["at"]
    file = packed(frames, folder)
    picture, sentence = frames[at]
    shown = markup(picture, sentence)[1]
    moved = ", ".join(f"{control['label']} = {control['choices'][control['at']]}" for control in controls)
    parts = [_control(control, f"{name}-{k}") for k, control in enumerate(controls)]
    fewer = [f"{len(c['choices'])} of {c['of']} positions of {c['label']}" for c in controls if len(c["choices"]) < c["of"]]
    thinner = f'<p class="fewer">This page has {" and ".join(map(html.escape, fewer))}; JupyterLab has all.</p>' if fewer else ""
    return (
        f'<div class="slider-figure" id="{name}" data-frames="{file}" data-positions="{len(frames)}">'
        f'<div class="controls" hidden>{"".join(parts)}</div>'
        f'<div class="picture" style="--height:{figure["height"]}px">{picture}</div>{shown}{thinner}'
        f'<p class="still">Shown at {html.escape(moved)}. Scripts are off, or this browser cannot unpack the other pictures.</p>'
        f'</div><script src="{up}frames/{file}.js"></script>'
    )


def _control(control: dict, name: str) -> str:
    label, choices, at = html.escape(control["label"].replace("_", " ")), control["choices"], control["at"]
    if control["radio"]:
        radios = "".join(
            f'<label><input type="radio" name="{name}" value="{k}"{" checked" * (k == at)}> {html.escape(choice)}</label>'
            for k, choice in enumerate(choices)
        )
        return f'<fieldset data-count="{len(choices)}"><legend>{label}</legend>{radios}</fieldset>'
    return (
        f'<div class="range"><label for="{name}">{label}</label><input type="range" id="{name}" min="0" max="{len(choices) - 1}" '
        f'value="{at}" autocomplete="off" aria-valuetext="{html.escape(choices[at])}" '
        f"data-choices='{html.escape(json.dumps(choices))}'>"
        f'<output for="{name}">{html.escape(choices[at])}</output></div>'
    )


def packed(frames: list[tuple[str, str]], folder: Path) -> str:
    """Write frames (picture, sentence) as one script, since pages opened from a disk may not fetch; the file's name without .js.

    Pictures are cut between elements, and equal pieces kept once: neighbouring frames differ in a few elements, and what they share
    lies too far apart for gzip to find.
    """
    cut = [re.split("(?<=>)(?=<)", picture) for picture, _ in frames]
    pieces = list(dict.fromkeys(piece for parts in cut for piece in parts))
    places = {piece: k for k, piece in enumerate(pieces)}
    pictures = [[places[piece] for piece in parts] for parts in cut]
    raw = json.dumps({"pieces": pieces, "pictures": pictures, "said": [said for _, said in frames]}, separators=(",", ":")).encode()
    name = hashlib.sha256(raw).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    data = base64.b64encode(gzip.compress(raw, mtime=0)).decode()
    write_atomic(folder / f"{name}.js", f'(window.bookFrames ??= {{}})["{name}"] = "{data}";\n')
    return name


def unpacked(file: Path) -> list[tuple[str, str]]:
    """The frames that `packed` wrote."""
    data = re.search(r'= "([^"]*)";', file.read_text())[1]
    content = json.loads(gzip.decompress(base64.b64decode(data)))
    pictures = ("".join(content["pieces"][k] for k in picture) for picture in content["pictures"])
    return list(zip(pictures, content["said"]))


def question(asked: Prediction, name: str) -> str:
    """The HTML of a question; `name`: unique id."""
    choices = "".join(
        f'<label><input type="radio" name="{name}" value="{k}" autocomplete="off"> {html.escape(choice)}</label>'
        for k, choice in enumerate(asked.choices)
    )
    replies = "".join(f"<template>{asked.reply(choice)}</template>" for choice in asked.choices)
    solved = f"<summary>Answer</summary>{html.escape(asked.answer)}. {html.escape(asked.because)}"
    return (
        f'<div class="question" id="{name}"><fieldset><legend><b>Predict first.</b> {html.escape(asked.question)}</legend>{choices}'
        f'</fieldset><div class="reply" aria-live="polite"><i>Choose an answer, then read on.</i></div>{replies}'
        f"<noscript><details>{solved}</details></noscript></div>"
    )
