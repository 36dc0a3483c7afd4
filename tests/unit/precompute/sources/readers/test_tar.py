"""Walking tar archives: the same members as tarfile finds, and what tarfile does not tell."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip2_cache.precompute.sources.readers.tar import TarFault, TarMember, walk_tar

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
needs_gnu_tar = pytest.mark.skipif(
    b"GNU" not in subprocess.run(["tar", "--version"], capture_output=True).stdout,
    reason="tar is not GNU tar",
)
LONG = "/".join(["folder"] * 30) + "/image.jpg"


def make_tar(
    members: dict[str, bytes], form: int = tarfile.GNU_FORMAT, **settings: object
) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form, **settings) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def header(
    name: bytes = b"a.jpg", size: bytes = b"00000000003", kind: bytes = b"0", magic: bytes = b""
) -> bytearray:
    """A header written by hand; only what a test says stands in it."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    return seal(block)


def seal(block: bytearray) -> bytearray:
    """Put in the checksum that fits."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return bytes(header(b"pax", b"%011o" % len(records), kind)) + padded(records)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    return b"%d" % length + body


ONE = bytes(header()) + padded(b"abc")  # a member a.jpg of 3 bytes
END = bytes(1024)


def walk(data: bytes) -> list[TarMember | TarFault]:
    return list(walk_tar(io.BytesIO(data)))


def members_of(data: bytes) -> list[tuple[bytes, int, int]]:
    """Files of an archive that is whole."""
    found = walk(data)
    assert not [entry for entry in found if isinstance(entry, TarFault)]
    return [(m.name, m.offset, m.size) for m in found if isinstance(m, TarMember)]


def names_of(data: bytes) -> list[bytes]:
    return [m.name for m in walk(data) if isinstance(m, TarMember)]


def fault_of(data: bytes) -> str:
    """The fault that a walk ends with."""
    *before, last = walk(data)
    assert isinstance(last, TarFault)
    assert all(isinstance(entry, TarMember) for entry in before)
    return last.reason


# -- the same as tarfile finds

_PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1)
_NAMES = st.lists(_PARTS, min_size=1, max_size=6).map("/".join).filter(lambda n: n.strip("./"))


@pytest.mark.parametrize("form", FORMATS)
@given(
    members=st.dictionaries(_NAMES, st.binary(max_size=1100), max_size=5),
    lengthen=st.integers(0, 300),
)
@settings(max_examples=60, deadline=None)
def test_members_are_those_that_tarfile_wrote_and_reads(
    form: str, members: dict[str, bytes], lengthen: int
) -> None:
    members = {"x" * lengthen + name: data for name, data in members.items()}
    try:
        archive = make_tar(members, FORMATS[form])
    except ValueError:  # ustar has no room for some names
        assert form == "ustar"
        return
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    found = members_of(archive)
    assert [(name.decode(), offset, size) for name, offset, size in found] == expected
    assert {n.decode(): archive[o : o + s] for n, o, s in found} == members


def test_names_of_a_ustar_prefix_are_joined() -> None:
    archive = make_tar({LONG: b"abc"}, tarfile.USTAR_FORMAT)
    assert archive[345:351] == b"folder"  # the prefix is in use
    assert members_of(archive) == [(LONG.encode(), 512, 3)]


@needs_gnu_tar
def test_what_gnu_tar_writes_is_read(tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / LONG).parent.mkdir(parents=True)
    (files / LONG).write_bytes(b"abc")
    (files / "\xe9.jpg").write_bytes(b"e")
    (files / "link.jpg").symlink_to("\xe9.jpg")
    (files / "hard.jpg").hardlink_to(files / "\xe9.jpg")
    for form in ("gnu", "posix", "ustar", "oldgnu", "v7"):
        options = [f"--format={form}", "--sort=name", "-C", str(files), "-cf"]
        archive = tmp_path / f"{form}.tar"
        done = subprocess.run(["tar", *options, str(archive), "."], capture_output=True)
        if form != "v7":  # which has no room for a long name, and leaves it out
            assert done.returncode == 0, done.stderr
        found = [m for m in walk(archive.read_bytes()) if isinstance(m, TarMember)]
        with tarfile.open(archive) as tar:
            expected = [(m.name, m.offset_data) for m in tar.getmembers() if m.isreg()]
        names = [(m.name.decode(), m.offset) for m in found if m.kind == "file"]
        assert names == expected
        kinds = {m.name: m.kind for m in found}
        assert kinds[b"./link.jpg"] == "link"
        assert kinds[b"./"] == "folder"
        assert {"file", "link"} == {m.kind for m in found if m.name.endswith(b".jpg")}


@needs_gnu_tar
@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix"]])
def test_a_sparse_file_is_told_from_a_plain_one_and_passed_over(
    tmp_path: Path, options: list[str]
) -> None:
    with (tmp_path / "holes.jpg").open("wb") as file:
        for i in range(40):  # more pieces than one header has room for
            file.seek(i * 200_000)
            file.write(b"x" * 4096)
    status = (tmp_path / "holes.jpg").stat()
    if status.st_blocks * 512 >= status.st_size:
        pytest.skip("this filesystem keeps no holes")
    (tmp_path / "z.jpg").write_bytes(b"plain")
    archive = tmp_path / "a.tar"
    command = ["tar", "-S", *options, "-C", str(tmp_path), "-cf", str(archive)]
    subprocess.run([*command, "holes.jpg", "z.jpg"], check=True)
    sparse, plain = [m for m in walk(archive.read_bytes()) if isinstance(m, TarMember)]
    assert sparse.kind == "sparse"
    assert plain.kind == "file"
    assert archive.read_bytes()[plain.offset :][: plain.size] == b"plain"


# -- headers by hand


def test_a_size_in_base_256_is_read() -> None:
    assert members_of(header(size=b"\x80" + bytes(10) + b"\3") + padded(b"abc") + END) == [
        (b"a.jpg", 512, 3)
    ]


def test_a_name_says_nothing_but_a_name() -> None:
    names = [
        b"../../x.jpg",
        b"/etc/passwd",
        b"a/../../b.jpg",
        b"C:\\x.jpg",
        b"\xff.jpg",
        b"a\nb.jpg",
    ]
    archive = b"".join(bytes(header(name)) + padded(b"abc") for name in names) + END
    assert names_of(archive) == names


def test_a_checksum_of_signed_bytes_is_right_too() -> None:
    block = header(b"\xe9\xe8.jpg")
    signed = sum(block) - sum(block[148:156]) + 256 - 512
    block[148:156] = b"%06o\0 " % signed
    assert names_of(bytes(block) + padded(b"abc") + END) == [b"\xe9\xe8.jpg"]


def test_a_pax_header_gives_name_and_size_of_the_next_member_only() -> None:
    told = pax(record(b"path", b"b.jpg") + record(b"size", b"3") + record(b"comment", b"x=y\nz"))
    wrong_size = bytes(header(size=b"00000000000"))
    archive = told + wrong_size + padded(b"abc") + ONE + END
    assert [(n, s) for n, _, s in members_of(archive)] == [(b"b.jpg", 3), (b"a.jpg", 3)]


def test_a_global_pax_header_holds_for_all_that_follow() -> None:
    told = pax(record(b"path", b"all.jpg") + record(b"size", b"3"), b"g")
    own = pax(record(b"path", b"own.jpg"))
    no_size = bytes(header(size=b"00000000000")) + padded(b"abc")
    archive = ONE + told + no_size + own + no_size + no_size + END
    assert [(n, s) for n, _, s in members_of(archive)] == [
        *((b"a.jpg", 3), (b"all.jpg", 3), (b"own.jpg", 3), (b"all.jpg", 3))
    ]


def test_a_link_or_folder_has_no_data_whatever_size_it_gives() -> None:
    for kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
        assert names_of(bytes(header(b"l.jpg", kind=kind)) + ONE + END) == [b"l.jpg", b"a.jpg"]
    assert names_of(bytes(header(b"f/", kind=b"\0")) + ONE + END) == [b"f/", b"a.jpg"]  # version 7


def test_a_member_of_a_kind_that_nobody_knows_is_passed_over_with_its_data() -> None:
    found = walk(bytes(header(b"v.jpg", kind=b"V")) + padded(b"abc") + ONE + END)
    assert [m.kind for m in found if isinstance(m, TarMember)] == ["other", "file"]


# -- how an archive ends


@pytest.mark.parametrize("blocks", [1, 2, 20, 5000])
def test_zero_blocks_are_the_end(blocks: int) -> None:
    assert members_of(ONE + bytes(512 * blocks)) == [(b"a.jpg", 512, 3)]


@pytest.mark.parametrize(
    ("archive", "names", "reason"),
    [
        (b"", 0, "it is empty: 0 bytes"),
        (b"<html>" + bytes(600), 0, "it is not a tar archive: it does not begin with a header"),
        (b"<html>", 0, "it is cut in the middle of a header, at byte 6"),
        (ONE, 1, "it has no end mark at byte 1,024 and may be cut"),
        (ONE[:515], 1, "it has no end mark at byte 515 and may be cut"),
        (ONE + bytes(100), 1, "it has no whole end mark at byte 1,124 and may be cut"),
        (
            ONE + ONE[:514],
            1,
            "it is cut at byte 1,538, in the middle of 'a.jpg', which would end at byte 1,539",
        ),
        (
            ONE + pax(record(b"path", b"x" * 600))[:-600],
            1,
            "it is cut at byte 1,960, in the middle of an extended header, which would end at byte "
            "2,146",
        ),
        (ONE + ONE[:511], 1, "it is cut in the middle of a header, at byte 1,535"),
        (ONE + b"\1" + ONE[1:], 1, "it is damaged at byte 1,024, where a header should stand"),
        (
            ONE + END + ONE + END,
            1,
            "there is more data after its end mark, from byte 2,048 on, which is not read; if archives "
            "were concatenated, give each as a separate file",
        ),
        (
            ONE + pax(record(b"path", b"x")),
            1,
            "it is cut at byte 2,048, after the name of a member that is missing",
        ),
        (
            ONE + pax(record(b"path", b"x")) + END,
            1,
            "it is damaged at byte 2,048: an end mark instead of a member",
        ),
        (
            ONE + pax(record(b"path", b"x")) + bytes(100),
            1,
            "it is damaged at byte 2,048: an end mark instead of a member",
        ),
        (
            bytes(header(b"a.jpg", b"\x80" + b"\xff" * 11)) + END,
            0,
            "it is cut at byte 1,536, in the middle of 'a.jpg', which would end at byte "
            f"{2**88 - 1 + 512:,}",
        ),
        (
            bytes(header(b"a.jpg", b"\xff" * 12)) + END,
            0,
            "it is not a tar archive: it does not begin with a header",
        ),
    ],
)
def test_every_other_end_is_named_with_its_byte(archive: bytes, names: int, reason: str) -> None:
    assert fault_of(archive) == reason
    assert names_of(archive) == [b"a.jpg"] * names


@pytest.mark.parametrize(
    "records",
    [
        b"nonsense",
        b"99 path=x\n",
        b"9 path=x\n9 path=",
        b"0 path=x\n",
        b"3 \n",
        b"7 pathx\n",
        b"99999999999999999999 path=x\n",
        record(b"size", b"-1"),
        record(b"size", b"1e3"),
        record(b"size", b"9" * 19),
        record(b"size", "\u0663".encode()),
    ],
)
@pytest.mark.parametrize("kind", [b"x", b"g", b"X"])
def test_a_broken_pax_header_ends_the_walk_by_name(records: bytes, kind: bytes) -> None:
    archive = ONE + pax(records, kind) + ONE + END
    assert fault_of(archive) == "it is damaged at byte 1,024: a broken extended header"
    assert names_of(archive) == [b"a.jpg"]


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [
        (b"L", 2**16 + 1, "a name of 65,537 bytes, at most 65,536 are read"),
        (b"x", 2**20 + 1, "an extended header of 1,048,577 bytes, at most 1,048,576 are read"),
    ],
)
def test_no_extended_header_fills_the_memory(kind: bytes, size: int, reason: str) -> None:
    archive = ONE + bytes(header(b"x", b"%011o" % size, kind)) + bytes(size + 512) + ONE + END
    assert fault_of(archive) == f"it is damaged at byte 1,024: {reason}"


# -- whatever the bytes


def check_anything(data: bytes) -> None:
    """A walk ends, raises nothing, and every member lies in the file, behind the one before."""
    position = 0
    for i, entry in enumerate(found := walk(data)):
        if isinstance(entry, TarFault):
            assert i == len(found) - 1
            assert entry.reason.isprintable()
        else:
            assert position < entry.offset <= entry.offset + entry.size <= len(data)
            position = entry.offset + entry.size


@given(data=st.binary(max_size=3000))
def test_random_bytes_raise_nothing(data: bytes) -> None:
    check_anything(data)


_ANY_KIND = st.sampled_from([b"0", b"\0", b"L", b"K", b"x", b"g", b"X", b"S", b"1", b"5", b"?"])
_BLOCKS = st.one_of(
    st.builds(
        lambda name, size, kind, rest: bytes(header(name, size, kind)) + rest,
        st.binary(max_size=100),
        st.one_of(st.integers(0, 2000).map(lambda n: b"%011o" % n), st.binary(max_size=12)),
        _ANY_KIND,
        st.one_of(st.just(b""), st.binary(max_size=1100).map(padded)),
    ),
    st.builds(pax, st.lists(st.builds(record, st.sampled_from([b"path", b"size", b"GNU.sparse.x"]),
              st.binary(max_size=20))).map(b"".join), st.sampled_from([b"x", b"g"])),
    st.just(ONE),
    st.just(bytes(512)),
)  # fmt: skip


@given(blocks=st.lists(_BLOCKS, max_size=8), cut=st.integers(0, 3000))
@settings(max_examples=150, deadline=None)
def test_archives_made_of_any_headers_raise_nothing(blocks: list[bytes], cut: int) -> None:
    data = b"".join(blocks)
    check_anything(data)
    check_anything(data[:cut])


@pytest.mark.parametrize("form", FORMATS)
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
@settings(max_examples=75, deadline=None)
def test_damaged_archives_raise_nothing_and_what_precedes_the_damage_is_kept(
    form: str, edits: list[tuple[int, int]]
) -> None:
    names = ["a.jpg", "\xe9.jpg", "f" * 90 + ".jpg", "b.jpg"]
    if form != "ustar":
        names.append(LONG * 2)
    whole = make_tar({name: name.encode() * 9 for name in names}, FORMATS[form])
    data = bytearray(whole)
    for position, byte in edits:
        data[position % len(data)] = byte
    check_anything(bytes(data))
    first = next((i for i in range(len(data)) if data[i] != whole[i]), len(data))
    untouched = [m for m in walk(whole) if isinstance(m, TarMember) and m.offset + m.size <= first]
    assert walk(bytes(data))[: len(untouched)] == untouched


def test_a_walk_reads_headers_and_no_data() -> None:
    class Counting(io.BytesIO):
        num_read = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.num_read += len(data)
            return data

    archive = make_tar({f"{i}.jpg": bytes(100_000) for i in range(20)})
    file = Counting(archive)
    assert len(list(walk_tar(file))) == 20
    assert file.num_read < 25 * 512 + 11_000  # the zeros behind the end are looked at


def test_a_file_that_gives_fewer_bytes_than_asked_is_read_whole() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 100) if size != -1 else 100)

    archive = make_tar({LONG: b"abc", "b.jpg": b"b"}, tarfile.PAX_FORMAT)
    assert list(walk_tar(Slow(archive))) == walk(archive)


def test_a_file_that_shrinks_while_it_is_read_is_named() -> None:
    file = io.BytesIO(make_tar({"a.jpg": b"a", "b.jpg": b"b"}))
    found = walk_tar(file)
    next(found)
    file.truncate(1024)
    assert list(found) == [TarFault("it became shorter than 10,240 bytes while it was read")]
