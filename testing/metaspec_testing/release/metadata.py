"""The metadata of archives, as an index of packages reads them."""

from __future__ import annotations

import tarfile
import zipfile

from packaging.metadata import Metadata

from metaspec_testing.distributions import Archives


def read(archives: Archives) -> dict[str, Metadata]:
    """Read and validate the metadata of a wheel and of its source archive, by the name of the file.

    Raises:
        ValueError: a field is missing, unknown or invalid; the message names archive and field.
    """
    with zipfile.ZipFile(archives.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        texts = {archives.wheel.name: wheel.read(name)}
    with tarfile.open(archives.sdist) as sdist:
        file = sdist.extractfile(f"{archives.sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert file is not None
        texts[archives.sdist.name] = file.read()
    found = {}
    for archive, text in texts.items():
        try:
            found[archive] = Metadata.from_email(text, validate=True)
        except ExceptionGroup as group:
            problems = "; ".join(str(error) for error in group.exceptions)
            raise ValueError(f"{archive}: {problems}") from None
    return found


def check(archives: Archives, version: str) -> None:
    """Check that an index would take the archives of a distribution, and shows a description with them.

    Raises:
        ValueError: the metadata are invalid or of another version, have no description in Markdown, need something by its
            address, or differ between wheel and source archive.
    """
    found = read(archives)
    for archive, metadata in found.items():
        if str(metadata.version) != version:
            raise ValueError(f"{archive}: expected version {version}, got {metadata.version}")
        if not (metadata.description or "").strip() or metadata.description_content_type != "text/markdown":
            raise ValueError(
                f"{archive}: expected a description in text/markdown, got {metadata.description_content_type}"
            )
        if addressed := [str(each) for each in metadata.requires_dist or () if each.url is not None]:
            raise ValueError(f"{archive}: an index refuses requirements by address, got {addressed}")
    wheel, sdist = (metadata.as_rfc822().as_string() for metadata in found.values())
    if wheel != sdist:
        raise ValueError(f"{archives.wheel.name}: its metadata differ from those of {archives.sdist.name}")
