"""Croissant metadata of a data set: what search engines and loaders of machine learning data read.

The format is MLCommons Croissant 1.1 (docs.mlcommons.org/croissant): JSON-LD in the vocabulary of schema.org. The Zarr store is
one set of files, and a sample one record with a field for each array. Its loaders knew no Zarr when this was written: they read
the description, and zarr or xarray read the data.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from metaspec_contract.files import write_json
from metaspec_simulation.data.damage import finished
from metaspec_simulation.data.store import PER_SAMPLE, Attributes, Group, read_attributes, read_dataset

FILE = "croissant.json"
"""Name of the file in the folder of a data set."""

_CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
_TYPES = {"uint8": "cr:UInt8", "int16": "cr:Int16", "float32": "cr:Float32"}

_TERMS = (
    *(
        "arrayShape",
        "citeAs",
        "column",
        "containedIn",
        "equivalentProperty",
        "extract",
        "field",
        "fileObject",
        "fileProperty",
    ),
    *(
        "fileSet",
        "format",
        "includes",
        "isArray",
        "isLiveDataset",
        "jsonPath",
        "key",
        "md5",
        "parentField",
        "path",
        "recordSet",
    ),
    *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
_CONTEXT: dict[str, Any] = {  # that of the specification
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _TERMS},
}


def write_croissant(
    folder: Annotated[Path, typer.Argument(help="Folder of a data set.", exists=True, file_okay=False)],
    licence: Annotated[
        str,
        typer.Option(
            "--license", metavar="ID", help="Licence of the data: SPDX identifier, such as CC-BY-4.0, or URL."
        ),
    ],
    url: Annotated[str, typer.Option(help="Address at which the data set is, or will be, published.")],
    creator: Annotated[str, typer.Option(help="Who made the data set.")],
    published: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Date of the publication; today by default.")
    ] = None,
    number: Annotated[
        str, typer.Option("--dataset-version", metavar="X.Y.Z", help="Version of the data set.")
    ] = "1.0.0",
) -> None:
    """Describe a finished data set as Croissant metadata, in the file croissant.json in its folder."""
    date = datetime.date.today() if published is None else published.date()
    document = describe(folder, licence=licence, url=url, creator=creator, published=date, number=number)
    write_json(folder / FILE, document)
    typer.echo(f"Wrote {folder / FILE}: {document['description']}")


def describe(
    folder: Path, *, licence: str, url: str, creator: str, published: datetime.date, number: str = "1.0.0"
) -> dict[str, Any]:
    """Croissant metadata of a finished data set.

    Args:
        folder: folder of the data set.
        licence: SPDX identifier or URL of the licence.
        url: address of the data set.
        creator: name of a person or an organisation.
        published: date of the publication.
        number: version of the data set, as semantic versions are written.

    Raises:
        ValueError: the folder is not a data set, samples are missing, or an argument is malformed.
    """
    if not re.fullmatch(r"https?://\S+", url):
        raise ValueError(f"--url must be an address, such as https://example.org/data, got {url!r}")
    if not re.fullmatch(r"https?://\S+|[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise ValueError(f"--license must be an SPDX identifier, such as CC-BY-4.0, or a URL, got {licence!r}")
    if not re.fullmatch(r"\d+\.\d+\.\d+", number):
        raise ValueError(f"--dataset-version must be three numbers, such as 1.0.0, got {number!r}")
    group = read_dataset(folder)
    attributes = read_attributes(folder, group)
    if missing := int((~finished(group)).sum()):
        raise ValueError(f"{folder} is not finished: {missing} of its samples are missing")
    arrays = [name for name in PER_SAMPLE if name in group and name != "complete"]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _CONFORMS_TO,
        "name": folder.resolve().name,
        "description": _summary(attributes, group),
        "license": licence if "://" in licence else f"https://spdx.org/licenses/{licence}.html",
        "url": url,
        "creator": {"@type": "sc:Organization", "name": creator},
        "datePublished": published.isoformat(),
        "version": number,
        "citeAs": f"{creator}: {folder.resolve().name}, version {number}, {published.year}, {url}",
        "keywords": ["metasurface", "photonics", "inverse design", "surrogate model", "spectra"],
        "isLiveDataset": False,
        "distribution": [_metadata_file(folder), _STORE],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "description": "One structure and its simulation. Values are as stored: descriptions say how they are scaled.",
                "field": [_field(name, group[name]) for name in arrays],
            },
            {
                "@type": "cr:RecordSet",
                "@id": "wavelengths",
                "name": "wavelengths",
                "description": "Wavelengths of the spectra, in the order of their last axis.",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": "wavelengths/nm",
                        "name": "nm",
                        "description": "wavelength in nm",
                        "dataType": "sc:Float",
                    }
                ],
                "data": [{"wavelengths/nm": value} for value in attributes.process.wavelengths_nm.tolist()],
            },
        ],
    }


def _summary(attributes: Attributes, group: Group) -> str:
    process, solver = attributes.process, attributes.solver
    grid = f" with {solver['cells']} grid cells per period" if "cells" in solver else ""
    merged = " Of G1 and G2, only the mean is known." if attributes.merged_greens else ""
    device = f"{process.solid.name} on {process.substrate.name}, period {process.period_um:g} um"
    detectors = f"{', '.join(attributes.channels)}, {process.distance_um:g} um below"
    return (
        f"{group['complete'].shape[0]} metasurface unit cells ({device}, thickness {process.thickness_um:g} um) and spectra of "
        f"their detectors {detectors}, from {process.wavelength_min_nm:g} to {process.wavelength_max_nm:g} nm, labelled by "
        f"{solver['name']}{grid}.{merged}"
    )


def _metadata_file(folder: Path) -> dict[str, Any]:
    content = (folder / "zarr.json").read_bytes()
    return {
        "@type": "cr:FileObject",
        "@id": "zarr.json",
        "name": "zarr.json",
        "description": "Metadata of the Zarr store, format 3: process, solver, and those of all arrays.",
        "contentUrl": "zarr.json",
        "contentSize": f"{len(content)} B",
        "encodingFormat": "application/json",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


_STORE = {
    "@type": "cr:FileSet",
    "@id": "store",
    "name": "store",
    "description": "The arrays of the Zarr store: a folder each, with metadata and chunks.",
    "encodingFormat": "application/octet-stream",
    "includes": ["*/zarr.json", "*/c/**"],
}


def _field(name: str, array: Any) -> dict[str, Any]:
    attributes = PER_SAMPLE[name][2] | dict(array.attrs)
    shape = array.shape[1:]
    meaning = attributes.get("long_name") or name.replace("_", " ")
    if "flag_meanings" in attributes:
        meaning = f"{meaning}: number of one of {attributes['flag_meanings']}, from 0"
    if name == "structure" and array.ndim == 2:
        meaning += "; packed bits, rows first, the first pixel in the highest bit"
    elif "scale_factor" in attributes:
        meaning += f"; stored value times {attributes['scale_factor']:.9g}"
    if "units" in attributes:
        meaning += f", in {attributes['units']}"
    axes = array.metadata.dimension_names[1:]
    return {
        "@type": "cr:Field",
        "@id": f"samples/{name}",
        "name": name,
        "description": meaning + (f"; axes {', '.join(axes)}" if shape else ""),
        "dataType": _TYPES[str(array.dtype)],
        **({"isArray": True, "arrayShape": ",".join(map(str, shape))} if shape else {}),
        "source": {"fileSet": {"@id": "store"}, "extract": {"fileProperty": "content"}},
    }
