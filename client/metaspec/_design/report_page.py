"""`report.html` of a run folder: one self-contained page with embedded figures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaspec_contract.detectors import COLOURS
from metaspec_contract.run_folder import Merit
from metaspec_contract.spectra import MERGED_GREENS

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>MetaSpec designs: {objective}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #1c2430 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ padding: .25em .8em; text-align: right; border-bottom: 1px solid #e3e6ea }}
td a {{ display: inline-block; margin-left: .6em }}
figure {{ margin: 1em 0; display: flex; flex-wrap: wrap; gap: 1em }}
figure img {{ width: 580px; max-width: 100% }}
section {{ border-top: 1px solid #ccd2d9; margin-top: 2em }}
.note {{ background: #fdf3d8; padding: .6em 1em; border-left: 4px solid #e0a800 }}
dl {{ display: grid; grid-template-columns: max-content auto; gap: .1em 1em }} dt {{ color: #5d6875 }} dd {{ margin: 0 }}
</style></head><body>
<h1>{count} designs, objective {objective}</h1>
<p class="note">{note}: <code>metaspec-simulate verify</code> on this folder.</p>
<table><tr><th>design</th>{before}<th>min efficiency</th><th>R</th><th>G1 + G2</th><th>B</th><th>crosstalk R, G, B</th>
<th>narrowest solid, void (nm)</th><th>start</th><th>files</th></tr>
{rows}</table>
<h2>History</h2>
<p>{evaluated} structures in {calls} calls, {wall}.</p>
<img src="{history}" alt="objective over the steps" style="max-width: 100%">
{sections}
<section><h2>Settings</h2><dl>{settings}</dl></section>
</body></html>
"""

_BEFORE = "<th>polished from</th><th>min efficiency there</th><th>the same, simulated</th>"


def page(report: Mapping[str, Any], folder: Path) -> str:
    """The page for a report.

    Args:
        report: contents of `report.json`.
        folder: run folder with the figures that the report names, and `history.png`.
    """
    designs = report["designs"]
    server = {} if report["url"] is None else {"server": report["url"]}
    settings = {**server, **report["settings"], "period (um)": report["period_um"]}
    return _PAGE.format(
        count=len(designs),
        objective=html.escape(report["objective"]),
        note=html.escape(_note(report)),
        before=_BEFORE if any("unpolished" in design for design in designs) else "",
        rows="\n".join(map(_row, designs)),
        evaluated=f"{report['structures_evaluated']:,}",
        calls=f"{report['server_calls']:,}",
        wall=f"{report['wall_s'] / 60:.1f} minutes" if report["wall_s"] > 90 else f"{report['wall_s']:.0f} seconds",
        history=_embedded(folder / "history.png"),
        sections="\n".join(_section(design, folder) for design in designs),
        settings="".join(
            f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>" for name, value in settings.items()
        ),
    )


def _note(report: Mapping[str, Any]) -> str:
    """Where the efficiencies come from, and how to check them."""
    origin = f"{report['model']}, version {report['model_version']}"
    if report["simulated"]:
        return f"All efficiencies on this page were simulated ({origin}). To check a design on another grid"
    greens = f" ({MERGED_GREENS})" if report["merged_greens"] else ""
    return (
        f"All efficiencies on this page are predictions of the model {origin}{greens}. Before manufacturing a design, "
        "check it with the solver"
    )


def _row(design: Mapping[str, Any]) -> str:
    merit, files = design["predicted"], design["files"]
    cells = [
        f'<a href="#design-{design["rank"]}">{design["rank"]:03d}</a>',
        *polished_from(design),
        f"<b>{number(merit.get('min_efficiency'))}</b>",
        *(number(merit["colour_efficiency"].get(colour)) for colour in COLOURS),
        ", ".join(number(merit["crosstalk"].get(colour)) for colour in COLOURS),
        f"{design['solid_nm']:.0f}, {design['void_nm']:.0f}",
        str(design["start"]),
        "".join(f'<a href="{files[kind]}">{files[kind].rpartition(".")[2]}</a>' for kind in ("structure", "layout")),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def polished_from(design: Mapping[str, Any]) -> list[str]:
    """Cells on the design that a polished one started from: its number, and min efficiency predicted and simulated."""
    if "unpolished" not in design:
        return []
    start = design["unpolished"]
    merits = (number(start[kind].get("min_efficiency")) for kind in ("predicted", "simulated"))
    return [f"{start['rank']:03d}", *merits]


def number(value: float | None) -> str:
    """A figure of merit in a table; a dash for one that there is not, since the wavelengths do not reach its band."""
    return "-" if value is None else f"{value:.3f}"


def in_words(merit: Merit) -> str:
    """Colour efficiencies: "min efficiency 0.512 (R 0.512, G 0.540, B 0.530)"; "" where no colour has one."""
    efficiencies = merit.colour_efficiency.model_dump(exclude_none=True)
    colours = ", ".join(f"{colour} {value:.3f}" for colour, value in efficiencies.items())
    if merit.min_efficiency is not None:
        return f"min efficiency {merit.min_efficiency:.3f} ({colours})"
    return f"efficiency {colours}" if colours else ""


def _section(design: Mapping[str, Any], folder: Path) -> str:
    pictures = "".join(
        f'<img src="{_embedded(folder / design["files"][kind])}" alt="{kind}">' for kind in ("picture", "spectra")
    )
    return f'<section id="design-{design["rank"]}"><figure>{pictures}</figure></section>'


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
