"""The course as a static book, for readers who have a browser and nothing else:  python -m qatcourse.book

Sphinx, myst-nb and the theme furo build it from the stored notebooks and the Markdown: navigation, a search that works offline and
autodoc. nbconvert has none of these; Jupyter Book 2 needs Node, and its pages a server; an empty page of sphinx-book-theme loads
2.3 MB, most of it an icon font, one of furo 0.1 MB. What none of them has is here: sliders and questions that need no kernel.

    build      stages the sources, lets Sphinx make pages, puts the finished folder in place
    frames     runs notebooks up to their last slider; every position of a slider
    live       sliders and questions as HTML, frames packed for the browser; static/book.js moves them
    pages      a stored notebook as a page: checked, its links resolved, solutions folded in
    finish     the pages that Sphinx made: warnings by cell, dead links, bytes
    extension  what Sphinx lacks: formulas without a script, terms linked to the glossary
    reference  the library's public names (public.py) from their docstrings (docstrings.py)
"""
