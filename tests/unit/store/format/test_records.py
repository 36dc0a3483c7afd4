"""Records: their bytes, and that no damage to them passes unseen."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip2_cache.errors import DamagedCacheError, FormatVersionError
from siglip2_cache.store.format.records import decode_record, encode_record, sha256_hex

FIELDS = {
    "unit": 3,
    "scale": -16.799999237060547,
    "key": "Füße 猫",
    "files": {"a": {"num_bytes": 1}},
}
MARK = b',\n "checksum": "'


def test_a_record_gives_its_fields_back_behind_the_format_version() -> None:
    fields = decode_record(encode_record(FIELDS), where="x")
    assert fields == {"format_version": 2, **FIELDS}
    assert next(iter(fields)) == "format_version"


def test_the_checksum_covers_the_bytes_before_it() -> None:
    data = encode_record(FIELDS)
    body, mark, rest = data.rpartition(MARK)
    assert mark
    assert rest == hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def test_a_record_is_ascii_whatever_it_says() -> None:
    assert encode_record(FIELDS).isascii()


def test_a_record_printed_by_another_hand_is_read() -> None:
    # Other white space, another order, raw UTF-8, an unknown field, other digits of one double.
    body = '{"z": 1e-06, "y": 0.000001, "key": "猫",  "format_version":1'.encode()
    data = body + MARK + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
    fields = decode_record(data, where="x")
    assert fields == {"z": 1e-06, "y": 1e-06, "key": "猫", "format_version": 1}


def test_every_flipped_bit_is_noticed() -> None:
    data = encode_record({"unit": 3, "format": "1"})
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(DamagedCacheError):
                decode_record(bytes(damaged), where="x")


def test_every_torn_record_is_noticed() -> None:
    data = encode_record(FIELDS)
    for length in range(len(data) - 1):  # the last newline means nothing
        with pytest.raises(
            DamagedCacheError, match=rf"x is not a complete record \({length} bytes\)"
        ):
            decode_record(data[:length], where="x")


@pytest.mark.parametrize("data", [b"[]", b"3", b'"text"', b"null", b"\xff\xfe", b"{}", b"\0" * 100])
def test_what_is_no_record_is_called_so(data: bytes) -> None:
    with pytest.raises(DamagedCacheError, match="it was truncated or overwritten"):
        decode_record(data, where="x")


def test_a_changed_record_is_named_with_both_checksums() -> None:
    data = encode_record(FIELDS)
    body = data.rpartition(MARK)[0]
    changed = data.replace(b'"unit": 3', b'"unit": 4')
    expected = rf"/c/cache.json has checksum {sha256_hex(body)}, its content has [0-9a-f]{{64}}; "
    with pytest.raises(DamagedCacheError, match=expected + "it was changed after it was written"):
        decode_record(changed, where="/c/cache.json")


def test_a_record_of_a_later_version_is_refused_by_number() -> None:
    body = b'{"format_version": 6'
    data = body + MARK + sha256_hex(body).encode() + b'"\n}\n'
    with pytest.raises(
        FormatVersionError,
        match=r"x has format version 6, this release reads versions 1 to 5; install the siglip2-cache",
    ):
        decode_record(data, where="x")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # any string, the mark and the lone surrogates of odd paths among them
    | st.text(st.characters(codec=None))
    | st.just(MARK.decode()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=VALUES)
def test_any_value_comes_back(value: object) -> None:
    assert decode_record(encode_record({"value": value}), where="x")["value"] == value


def test_the_bytes_are_those_that_json_writes() -> None:
    data = encode_record(FIELDS)
    assert json.loads(data)["checksum"] == sha256_hex(data.rpartition(MARK)[0])
    assert data == (json.dumps(json.loads(data), indent=1) + "\n").encode()
