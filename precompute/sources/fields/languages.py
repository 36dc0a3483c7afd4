"""Recognising language tags, in column names and in objects keyed by language.

A corpus writes ``caption_de`` or ``{"de": "ein Hund"}``, and also ``caption_url`` and
``{"raw": "a dog", "sentid": 3}``. A tag counts only if its first part is a known code;
otherwise every short word would silently turn such columns into captions.
"""

import re

_ISO_639_1 = """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da
    de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz
    ia id ie ig ii ik in io is it iu iw ja ji jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb
    lg li ln lo lt lu lv mg mh mi mk ml mn mo mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om
    or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw
    ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
"""
# Only what corpora use without a script; with one (``bho_Deva``) any three letters are a code.
_THREE_LETTERS = """
    ara ben bul ces ceb cmn cze dan deu ell eng est eus fas fil fin fra fre ger glg gre guj heb hin
    hrv hun ind ita jpn kor lav lit mar mri msa nld nob nor pan per pol por quz ron rum rus slk slv
    spa srp swa swe tam tel tha tur ukr und urd vie yue zho
"""
_CODES = frozenset(_ISO_639_1.split() + _THREE_LETTERS.split())
_TAG = re.compile(
    r"(?P<code>[A-Za-z]{2,3})(?P<script>[-_][A-Z][a-z]{3})?(?P<region>[-_]([A-Z]{2}|[0-9]{3})|-[a-z]{2})?"
)

IDENTIFIER_LIKE = frozenset({"id", "no"})
"""Codes (Indonesian, Norwegian) that as the end of a column name usually mean an identifier."""


def is_language_tag(text: str) -> bool:
    """Return whether a text is a language code, alone or with script and region: de, pt-BR, zh_Hant."""
    found = _TAG.fullmatch(text)
    if found is None:
        return False
    code = found["code"]
    return code.lower() in _CODES or (len(code) == 3 and found["script"] is not None)


def split_language(column: str) -> tuple[str, str] | None:
    """Return the two parts of a column name that ends in a language; None for any other name.

    ``caption_de``, ``caption-de``, ``caption.de`` and ``caption:de`` give ``("caption", "de")``.
    The longest tag wins, so that ``caption_zh_Hant`` is not the language Hant.
    """
    for separator in re.finditer(r"[_:.-]", column):
        base, tag = column[: separator.start()], column[separator.end() :]
        if base and is_language_tag(tag):
            return base, tag
    return None
