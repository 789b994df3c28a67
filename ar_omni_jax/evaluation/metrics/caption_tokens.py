"""Captions to words as COCO's evaluation has them: Penn Treebank tokens, lower case, without punctuation; no Java.

Follows what Stanford's PTBTokenizer (CoreNLP 3.4.1, -lowerCase) does to captions: clitics come off ("does n't",
"man 's", "can not", "gon na"), hyphenated words, numbers with their points and abbreviations stay whole, brackets
become names such as "-lrb-". Then COCO's list of punctuation is dropped; it has "-LRB-" in capitals, so lower case
bracket names stay, and so do "?!" and "/". Not followed: rarer abbreviations, emoticons, markup and SGML entities.
"""

from __future__ import annotations

import re

_DROPPED = frozenset("'' ' `` ` . ? ! , : - -- ... ;".split())
_PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "...", "\u00a0": " ", "`": "'"}
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|jr|sr|vs|etc|inc|co|corp|ltd|gen|col|capt|lt|sgt|rev|hon|gov|sen|rep|"
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|approx|dept|est|mt|ft|e\\.g|i\\.e|a\\.k\\.a|ph\\.d"
)
_CLITIC = r"'(?:s|m|d|re|ve|ll)(?![a-z0-9])"
_TOKENS = re.compile(
    rf"""
    (?P<whole>  https?://\S+ | [\w.+-]+@[\w-]+\.[\w.-]+ | <[/a-z][^<>\s]*>
              | 'n' | '\d\ds(?!\w) | '(?:cause|em)(?!\w)                  # rock 'n' roll; the '90s; 'em
              | [@#][a-z_]\w* | [a-z]+(?:[/&][a-z]+)+(?!\w)               # @home; b&w, and/or
              | (?:[a-z]\.){{2,}} | \b[a-z]\.(?=\s*$|\s+(?-i:[a-z\d]))   # a.m.; plan b.
              | \b(?:{_ABBREVIATIONS})\.                                     # mr.
              | \bnos?\.(?=\s*\d) )                                        # no. 7
  | (?P<old>    't(?=(?:is|was)\b) )                                      # 'tis
  | (?P<clitic> {_CLITIC} | n't(?!\w) )
  | (?P<number> [+](?=\d) \d+ | \d+(?:[.,:/]\d+)+(?!\w) | \.\d+ | \d+(?:[.,]\d+)*(?:-\w+)* (?:\w+(?:-\w+)*)? )
  | (?P<word>   [^\W\d_] (?: [\w] | [-_.](?=\w) | '(?!(?:s|m|d|re|ve|ll|t)(?![a-z0-9]))(?=\w{{2}}) )* )
  | (?P<mark>   \.{{2,}} | --+ | [?!]+ | [^\w\s] | _+ )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SPLIT = {
    **{word: (word[:-2], word[-2:]) for word in ("gonna", "gotta", "wanna")},
    **{word: (word[:3], word[3:]) for word in ("cannot", "lemme", "gimme")},
}


def caption_tokens(caption: str) -> list[str]:
    """Words of a caption; [] for one that has none."""
    text = re.sub(r"(?<=[a-z])n't(?!\w)", " n't", caption.translate(_PLAIN), flags=re.IGNORECASE)
    out: list[str] = []
    for match in _TOKENS.finditer(text):
        token = match.group().lower()
        if match["old"]:
            out.append("'t")
        elif match["mark"]:
            out.append("--" if re.fullmatch(r"--+|\.{2,}", token) else _BRACKETS.get(token, token))
        else:
            out.extend(_SPLIT.get(token, (token,)))
    return [token for token in out if token not in _DROPPED and token != '"']
