"""EXIF, XMP and IPTC: kept, chosen from, made true."""

from pathlib import Path

import pytest
from PIL import Image, IptcImagePlugin

from fourfold.imaging import OutputOptions, exif, metadata

XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" exif:GPSLatitude="52,30.5N" tiff:Orientation="6" exif:PixelXDimension="40">
<exif:GPSLongitude>13,22.7E</exif:GPSLongitude><dc:rights><rdf:Alt><rdf:li>(c) me</rdf:li></rdf:Alt></dc:rights>
<dc:subject><rdf:Bag><rdf:li>cat</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"""
IPTC = b"\x1c\x02\x19\x00\x03cat" + b"\x1c\x02\x74\x00\x06(c) me"


def block() -> Image.Exif:
    """Return EXIF with a camera, an author, a place, a size and an orientation."""
    made = Image.Exif()
    made[0x010F], made[0x8298], made[0x0112] = "Maker", "(c) me", 6
    made.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    made.get_ifd(0x8769)[0xA002] = 40
    made.get_ifd(0x8825)[1] = "N"
    made.get_ifd(0x8825)[2] = (52.0, 30.0, 30.0)
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A JPEG of 40 x 30 that lies on its side, with all three kinds of metadata."""
    path = tmp_path / "in.jpg"
    wrapped = metadata._photoshop(IPTC)
    segment = b"\xff\xed" + (len(wrapped) + 2).to_bytes(2, "big") + wrapped
    Image.new("RGB", (40, 30), (90, 120, 150)).save(path, exif=block(), xmp=XMP, quality=95, dpi=(300, 300))
    data = path.read_bytes()
    path.write_bytes(data[:2] + segment + data[2:])
    return path


def read(path: Path) -> tuple[Image.Exif, bytes, Image.Image]:
    with Image.open(path) as image:
        image.load()
        found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
        tags = image.getexif()
        tags.get_ifd(0x8769), tags.get_ifd(0x8825)
        return tags, found.encode() if isinstance(found, str) else found, image.copy()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "avif"])
def test_by_default_everything_stays_but_the_place(upscaling, source: Path, tmp_path: Path, kind: str) -> None:
    """The camera, the date, the keywords and the rights; sizes and orientation are the result's."""
    target = tmp_path / f"out.{kind}"

    upscaling.upscale(source, target, OutputOptions(format=kind))

    tags, xmp, image = read(target)
    assert image.size == (120, 160)
    assert (tags[0x010F], tags[0x8298], tags.get(0x0112, 1)) == ("Maker", "(c) me", 1)
    assert (tags.get_ifd(0x8769)[0x9003], tags.get_ifd(0x8769)[0xA002]) == ("2020:01:01 00:00:00", 120)
    assert 0x8825 not in tags and not tags.get_ifd(0x8825)
    assert b"GPS" not in xmp and b"cat" in xmp and b"(c) me" in xmp
    assert b'tiff:Orientation="1"' in xmp and b'exif:PixelXDimension="120"' in xmp


def test_keep_keeps_the_place_as_well(upscaling, source: Path, tmp_path: Path) -> None:
    """It is the owner's choice."""
    upscaling.upscale(source, tmp_path / "out.png", OutputOptions(metadata="keep"))

    tags, xmp, _ = read(tmp_path / "out.png")
    assert tags.get_ifd(0x8825)[1] == "N" and b"GPSLatitude" in xmp


def test_strip_leaves_nothing(upscaling, source: Path, tmp_path: Path) -> None:
    """No block of any kind, not even an empty one."""
    _, written = upscaling.upscale(source, tmp_path / "out.jpg", OutputOptions(format="jpeg", metadata="strip"))

    tags, xmp, _ = read(tmp_path / "out.jpg")
    assert (dict(tags), xmp, written.metadata_kept) == ({}, b"", ())
    data = (tmp_path / "out.jpg").read_bytes()
    assert b"Exif" not in data and b"Photoshop" not in data


def test_copyright_keeps_author_and_rights_alone(upscaling, source: Path, tmp_path: Path) -> None:
    """In all three blocks."""
    upscaling.upscale(source, tmp_path / "out.jpg", OutputOptions(format="jpeg", metadata="copyright"))

    tags, xmp, _ = read(tmp_path / "out.jpg")
    assert tags[0x8298] == "(c) me" and 0x010F not in tags and not tags.get_ifd(0x8825)
    assert b"(c) me" in xmp and b"cat" not in xmp and b"GPS" not in xmp
    with Image.open(tmp_path / "out.jpg") as image:
        assert IptcImagePlugin.getiptcinfo(image) == {(2, 116): b"(c) me"}


def test_iptc_comes_through_a_png_and_back(upscaling, source: Path, tmp_path: Path) -> None:
    """As the text that other tools know it by."""
    upscaling.upscale(source, tmp_path / "a.png")
    upscaling.upscale(tmp_path / "a.png", tmp_path / "b.jpg", OutputOptions(format="jpeg"))

    with Image.open(tmp_path / "b.jpg") as image:
        assert IptcImagePlugin.getiptcinfo(image) == {(2, 25): b"cat", (2, 116): b"(c) me"}


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_the_resolution_of_a_print_stays(upscaling, tmp_path: Path, kind: str) -> None:
    """300 dots an inch are 300 dots an inch of a larger print, also where the picture says nothing else."""
    Image.new("RGB", (8, 6), "teal").save(tmp_path / "in.png", dpi=(300, 300))

    upscaling.upscale(tmp_path / "in.png", tmp_path / "out", OutputOptions(format=kind))

    with Image.open(tmp_path / "out") as image:
        assert image.info["dpi"] == pytest.approx((300, 300), rel=1e-3)


@pytest.mark.parametrize(("metadata", "dpi"), [("strip", (300, 300)), ("default", None)])
def test_a_resolution_that_nobody_said_is_the_usual_one(
    upscaling, tmp_path: Path, metadata: str, dpi: tuple[int, int] | None
) -> None:
    """72 dots an inch; by itself, libvips writes 25.4."""
    Image.new("RGB", (8, 6), "teal").save(tmp_path / "in.png", **({"dpi": dpi} if dpi else {}))

    upscaling.upscale(tmp_path / "in.png", tmp_path / "out.png", OutputOptions(metadata=metadata))

    with Image.open(tmp_path / "out.png") as image:
        assert image.info["dpi"] == pytest.approx((72, 72), rel=1e-3)


def test_a_stale_thumbnail_is_gone() -> None:
    """The second directory is the thumbnail's: the link to it is not written."""
    made = exif.rewrite(block().tobytes(), mode="keep", width=160, height=120)
    assert made is not None
    entries = int.from_bytes(made[14:16], "little" if made[6:8] == b"II" else "big")

    assert made[16 + 12 * entries : 20 + 12 * entries] == bytes(4)


@pytest.mark.parametrize("data", [b"", b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x" * 100])
def test_damaged_exif_is_dropped(data: bytes) -> None:
    """It never stops a picture."""
    assert exif.rewrite(data, mode="keep", width=1, height=1) is None


def test_every_cut_of_a_block_is_survived() -> None:
    """Offsets that lead out of the block lead nowhere."""
    whole = block().tobytes()
    for end in range(len(whole)):
        exif.rewrite(whole[:end] + b"\xff" * (len(whole) - end), mode="default", width=1, height=1)
