"""`report.html` of a run folder: one self-contained page with embedded figures, made from the files of the folder.

Whoever adds to a folder makes the page anew: the optimisation, the verification with a solver, and the polish of its designs.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metaspec_contract.conditions import stated_conditions
from metaspec_contract.detectors import COLOURS
from metaspec_contract.files import read_array, write_text
from metaspec_contract.links import structure_link
from metaspec_contract.run_folder import NARROW_NM, REPORT, VERIFY, Merit
from metaspec_contract.spectra import MERGED_GREENS

PAGE = "report.html"
"""The page in a run folder."""

RULES = (
    "Narrowest solid and void: diameter of the largest disc that paints all of it, in whole pixels, single pixels at edges "
    "ignored (imageruler)."
)
"""Which rule the narrowest features of a design are measured by."""

KLAYOUT_RULES = (
    "KLayout: the largest Euclidian width and space rule that the smooth contours pass as a periodic array. Every step of the "
    "pixels and every rounded end counts there, so that it is smaller."
)
"""Which rule a layout passes in KLayout."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6875; --line: #d9dee4; --paper: #fff; --card: #f6f7f9;
  --note: #fdf3d8; --edge: #e0a800; --link: #1a5fb4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b3; --line: #38414d; --paper: #14181e;
  --card: #1d232b; --note: #332b12; --edge: #c79a1b; --link: #8ab8ff } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 0 auto; padding: 1em; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word }
h1 { font-size: 1.6em; line-height: 1.25 } h2 { font-size: 1.25em; margin-top: 1.8em }
a { color: var(--link) } code { font-size: .92em }
table { border-collapse: collapse; margin: 1em 0; width: 100%; font-variant-numeric: tabular-nums }
th { font-weight: 500; color: var(--soft); vertical-align: bottom; line-height: 1.25 }
th, td { padding: .35em .6em; text-align: right; border-bottom: 1px solid var(--line) }
td { white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
.note { background: var(--note); padding: .6em 1em; border-left: 4px solid var(--edge); margin: 1em 0 }
.small { color: var(--soft); font-size: .92em }
img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 6px }
.figure { overflow-x: auto }
section { border-top: 1px solid var(--line); margin-top: 2em }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1em; margin: 1em 0 }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15em 1em }
dt { color: var(--soft) } dd { margin: 0 } dd a { margin-right: .8em }
@media (max-width: 900px) {
  table, tbody, tr, td { display: block; width: 100% } thead { display: none }
  tr { background: var(--card); border-radius: 8px; padding: .5em .8em; margin: .8em 0 }
  td, td:first-child { display: flex; justify-content: space-between; gap: 1em; padding: .15em 0; border: 0; text-align: right }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; white-space: normal }
  td:first-child { font-size: 1.1em; font-weight: 600 }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0 } dd { margin-bottom: .5em }
}
@media (max-width: 700px) {
  .figure img { width: 560px; max-width: none } .wide img { width: 900px }
}
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>MetaSpec designs: {objective}</title><style>{style}</style></head><body>
<h1>{count}, objective {objective}</h1>
{notes}
{table}
<p class="small">{explanations}</p>
{polished}{verification}
<h2>History</h2>
<p>{evaluated} structures in {calls} calls, {wall}.</p>
<div class="figure"><img src="{history}" alt="objective over the steps"></div>
{sections}
<section><h2>Settings</h2><dl>{settings}</dl></section>
</body></html>
"""


def refresh_page(folder: Path) -> bool:
    """Make the `report.html` of a run folder anew, with what has been added: a verification, polished designs.

    Args:
        folder: run folder.

    Returns:
        Whether it was made: not in a folder without the figures that the page embeds.
    """
    report = _read(folder / REPORT)
    try:
        text = page(report, folder)
    except FileNotFoundError:
        return False
    write_text(folder / PAGE, text)
    return True


def page(report: Mapping[str, Any], folder: Path) -> str:
    """The page for a report.

    Args:
        report: contents of `report.json`.
        folder: run folder with the figures that the report names, and `history.png`.
    """
    designs = report["designs"]
    verified = _read(folder / VERIFY)
    simulated = {} if verified is None else {one["rank"]: one["simulated"] for one in verified["designs"]}
    server = {} if report["url"] is None else {"server": report["url"]}
    settings = {**server, **report["settings"], "period (um)": report["period_um"]}
    columns = _columns(report, simulated)
    return _PAGE.format(
        style=_STYLE,
        count="1 design" if len(designs) == 1 else f"{len(designs)} designs",
        objective=html.escape(report["objective"]),
        notes="\n".join(f'<p class="note">{html.escape(note)}</p>' for note in _notes(report, verified)),
        table=_table(list(columns[0]), [list(column.values()) for column in columns]),
        explanations=html.escape(" ".join(_explanations(report))),
        polished=_polished(folder),
        verification=_verification(folder, verified),
        evaluated=f"{report['structures_evaluated']:,}",
        calls=f"{report['server_calls']:,}",
        wall=f"{report['wall_s'] / 60:.1f} minutes" if report["wall_s"] > 90 else f"{report['wall_s']:.0f} seconds",
        history=_embedded(folder / "history.png"),
        sections="\n".join(_section(report, design, simulated.get(design["rank"]), folder) for design in designs),
        settings=_list({name: html.escape(stated(value)) for name, value in settings.items() if value is not None}),
    )


def stated(value: Any) -> str:
    """A setting in words: the entries of a list, or of a mapping with their names, separated by commas."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {stated(one)}" for name, one in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def ranked_by(report: Mapping[str, Any]) -> str:
    """What designs are ranked by, in words."""
    return str(report.get("ranked_by") or f"objective {report['objective']}")


def narrow(report: Mapping[str, Any]) -> str:
    """A warning of designs with features narrower than `NARROW_NM`; "" where there are none."""
    ranks = [f"{one['rank']:03d}" for one in report["designs"] if min(one["solid_nm"], one["void_nm"]) < NARROW_NM]
    if not ranks:
        return ""
    named = ", ".join(ranks[:5]) + (f" and {len(ranks) - 5} more" if len(ranks) > 5 else "")
    return (
        f"Features narrower than {NARROW_NM:g} nm, which few processes can make: design{'s' * (len(ranks) > 1)} {named}. "
        "--min-feature-nm keeps a width inside the optimisation."
    )


def shifts(design: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The eroded and the dilated form of a design, by name; empty where they were not computed."""
    return {name: design[name] for name in ("eroded", "dilated") if design.get(name)}


def own_conditions(report: Mapping[str, Any]) -> list[str]:
    """Names of the conditions of which each design of a report has its own value."""
    return list(report["designs"][0].get("conditions") or {})


def in_words(merit: Merit) -> str:
    """Colour efficiencies: "min efficiency 0.512 (R 0.512, G 0.540, B 0.530)"; "" where no colour has one."""
    efficiencies = merit.colour_efficiency.model_dump(exclude_none=True)
    colours = ", ".join(f"{colour} {value:.3f}" for colour, value in efficiencies.items())
    if merit.min_efficiency is not None:
        return f"min efficiency {merit.min_efficiency:.3f} ({colours})"
    return f"efficiency {colours}" if colours else ""


def number(value: float | None) -> str:
    """A figure of merit in a table; a dash for one that there is not, since the wavelengths do not reach its band."""
    return "-" if value is None else f"{value:.3f}"


def polished_from(design: Mapping[str, Any]) -> list[str]:
    """Cells on the design that a polished one started from: its number, and min efficiency predicted and simulated."""
    if "unpolished" not in design:
        return []
    start = design["unpolished"]
    merits = (number(start[kind].get("min_efficiency")) for kind in ("predicted", "simulated"))
    return [f"{start['rank']:03d}", *merits]


def _read(path: Path) -> Any:
    """Contents of a JSON file, or None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _notes(report: Mapping[str, Any], verified: Mapping[str, Any] | None) -> Iterable[str]:
    """Where the efficiencies come from and how to check them, and warnings."""
    at = f", at {stated_conditions(report['conditions'])}" if report.get("conditions") else ""
    origin = f"{report['model']}, version {report['model_version']}{at}"
    check = "metaspec-simulate verify on this folder"
    if report["simulated"]:
        yield f"All efficiencies were simulated ({origin}). To check a design on another grid: {check}."
    else:
        greens = f" ({MERGED_GREENS})" if report["merged_greens"] else ""
        which = "Efficiencies that are not called simulated" if verified else "All efficiencies"
        yield (
            f"{which} are predictions of the model {origin}{greens}. Before manufacturing a design, check it with the solver: "
            f"{check}."
        )
    if warning := narrow(report):
        yield warning


def _explanations(report: Mapping[str, Any]) -> Iterable[str]:
    """What the columns mean."""
    yield f"Ranked by {ranked_by(report)}."
    if any(shifts(design) for design in report["designs"]):
        yield (
            "Eroded and dilated: all edges moved by the stated nm, on average over the design's edges, by another threshold of "
            "the filtered latent; min efficiency."
        )
    if own := own_conditions(report):
        yield f"Each design has its own value of {', '.join(own)}, at which its efficiencies are."
    yield RULES
    if any(design.get("klayout") for design in report["designs"]):
        yield KLAYOUT_RULES


def _columns(report: Mapping[str, Any], simulated: Mapping[int, Any]) -> list[dict[str, str]]:
    """Cells of the table's rows, by heading."""
    designs, rows = report["designs"], []
    polished = any("unpolished" in design for design in designs)
    robust = any(shifts(design) for design in designs)
    for design in designs:
        merit = design["predicted"]
        row = {"design": f'<a href="#design-{design["rank"]}">{design["rank"]:03d}</a>'}
        if polished:
            names = ("polished from", "min efficiency there", "the same, simulated")
            row |= dict(zip(names, polished_from(design) or ["-"] * 3, strict=True))
        row["objective"] = f"<b>{design['objective']:.4f}</b>"
        row["min efficiency"] = number(merit.get("min_efficiency"))
        row |= {_heading(colour): number(merit["colour_efficiency"].get(colour)) for colour in COLOURS}
        row |= {html.escape(name): f"{value:.4g}" for name, value in (design.get("conditions") or {}).items()}
        if robust:
            row |= {name: _shift(design.get(name)) for name in ("eroded", "dilated")}
        if simulated:
            row["min efficiency, simulated"] = _simulated(simulated.get(design["rank"]))
        row["narrowest solid, void (nm)"] = f"{_width(design['solid_nm'])}, {_width(design['void_nm'])}"
        if any(one.get("klayout") for one in designs):
            row["KLayout width, space (nm)"] = _rules(design.get("klayout"))
        rows.append(row)
    return rows


def _heading(colour: str) -> str:
    return {"G": "G1 + G2"}.get(colour, colour)


def _rules(rules: Mapping[str, Any] | None) -> str:
    """Rules that the contours of a design pass."""
    return f"{rules['contours']['width_nm']}, {rules['contours']['space_nm']}" if rules else "-"


def _width(width_nm: float) -> str:
    return f"{width_nm:.0f}{'&nbsp;⚠' if width_nm < NARROW_NM else ''}"


def _shift(shifted: Mapping[str, Any] | None) -> str:
    if not shifted:
        return "-"
    return f"{number(shifted['predicted'].get('min_efficiency'))} ({shifted['shift_nm']:+.0f}&nbsp;nm)"


def _simulated(grids: Mapping[str, Any] | None) -> str:
    """Smallest efficiency on the finest grid, with its cells."""
    if not grids:
        return "-"
    cells = max(grids, key=int)
    return f"{number(grids[cells].get('min_efficiency'))} [{cells}]"


def _table(headings: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join("<tr>" + "".join(map(_cell, headings, row)) + "</tr>" for row in rows)
    return f'<div class="figure"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cell(heading: str, content: str) -> str:
    return f'<td data-label="{heading}">{content}</td>'


def _list(entries: Mapping[str, str]) -> str:
    return "".join(f"<dt>{html.escape(name)}</dt><dd>{value}</dd>" for name, value in entries.items())


def _section(
    report: Mapping[str, Any], design: Mapping[str, Any], simulated: Mapping[str, Any] | None, folder: Path
) -> str:
    merit, files = design["predicted"], design["files"]
    pictures = "".join(
        f'<div class="figure"><img src="{_embedded(folder / files[kind])}" alt="{kind} of design {design["rank"]:03d}"></div>'
        for kind in ("picture", "spectra")
    )
    found = (
        f"start {design['start']}, step {design['step'] + 1}"  # steps counted from 1, as in the figure of the history
    )
    entries = {"crosstalk": _colours(merit["crosstalk"]), "found": found}
    if own := design.get("conditions"):
        entries["conditions"] = html.escape(stated_conditions(own))
    for name, shifted in shifts(design).items():
        where = f"{name} ({shifted['shift_nm']:+.1f} nm)"
        entries[where] = _colours(shifted["predicted"]["colour_efficiency"])
    for cells, one in sorted((simulated or {}).items(), key=lambda item: int(item[0])):
        entries[f"simulated, {cells} cells"] = _colours(one["colour_efficiency"])
    for kind, rules in (design.get("klayout") or {}).items():
        entries[f"KLayout, {kind}"] = f"width {rules['width_nm']} nm, space {rules['space_nm']} nm"
    names = [files[kind] for kind in ("structure", "layout", "contours") if files.get(kind)]
    entries["files"] = " ".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a>' for name in names)
    if link := studio_link(report, design, folder):
        entries["studio"] = f'<a href="{html.escape(link)}">open on the page of the server</a>'
    head = f'<section id="design-{design["rank"]}"><h2>Design {design["rank"]:03d}</h2>'
    return f'{head}<div class="pictures">{pictures}</div><dl>{_list(entries)}</dl></section>'


def studio_link(report: Mapping[str, Any], design: Mapping[str, Any], folder: Path) -> str | None:
    """Link to a binary design on the page of the server of a run; None where there is no such page, or no such design.

    Args:
        report: contents of `report.json`.
        design: entry of the design in it.
        folder: run folder.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / design["files"]["structure"]
    if report["url"] is None or not path.is_file():
        return None
    structure = read_array(path)
    if not np.isin(structure, (0, 1)).all():
        return None
    conditions = {**(report.get("conditions") or {}), **(design.get("conditions") or {})}
    return structure_link(report["url"], structure.astype(np.uint8), report["model"], conditions)


def _colours(values: Mapping[str, float | None]) -> str:
    return ", ".join(f"{_heading(colour)} {number(values.get(colour))}" for colour in COLOURS)


def _verification(folder: Path, verified: Mapping[str, Any] | None) -> str:
    """What the verification found, with its figure."""
    if verified is None:
        return ""
    summary, text = verified["summary"], ""
    if best := summary.get("best"):
        text = f"Best when simulated: design {best['rank']:03d}, min efficiency {best['simulated']:.3f} "
        text += f"(in this run {best['predicted']:.3f}). "
    if "rms" in summary:
        text += f"Rms difference of the spectra {summary['rms']:.4f}. "
    text += f"Solver: {', '.join(map(str, verified['solver'].get('cells', [])))} cells per period."
    picture = folder / "verify.png"
    image = f'<img src="{_embedded(picture)}" alt="spectra, predicted and simulated">' if picture.exists() else ""
    return f'<h2>Verification</h2><p>{html.escape(text)}</p><div class="figure wide">{image}</div>'


def _polished(folder: Path) -> str:
    """Tables of the polished designs in folders inside a run folder."""
    tables = []
    for path in sorted(folder.glob(f"*/{REPORT}")):
        report = _read(path)
        designs = report.get("designs", []) if isinstance(report, dict) else []
        rows = [
            [f"{start['rank']:03d}", *map(number, _before_and_after(start, design))]
            for design in designs
            if (start := design.get("unpolished"))
        ]
        if rows:
            name = html.escape(path.parent.name)
            headings = ["design", "min efficiency, simulated before", "polished"]
            tables.append(f'<h2>Polished: <a href="{name}/{PAGE}">{name}</a></h2>{_table(headings, sorted(rows))}')
    return "".join(tables)


def _before_and_after(start: Mapping[str, Any], design: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return start["simulated"].get("min_efficiency"), design["predicted"].get("min_efficiency")


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
