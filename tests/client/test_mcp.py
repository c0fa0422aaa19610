"""`metaspec mcp` as a program starts it: the client of the official SDK over standard streams, and the real server."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import CallToolResult, ImageContent
from PIL import Image

from metaspec import Surrogate, objectives
from metaspec_contract.run_folder import VERIFY, read_report
from metaspec_contract.structures import pack
from metaspec_simulation.source import SolverSource
from metaspec_testing.conditioned_models import CONDITIONS
from metaspec_testing.direct import Direct
from metaspec_testing.servers import RunningServer

LONG_RUN = {"folder": "run", "steps": 300, "starts": 2}


class Notices:
    """Notices of progress: how far, of how much; and an event that is set by the first."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None]] = []
        self.messages: list[str | None] = []
        self.begun = asyncio.Event()

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        self.seen.append((progress, total))
        self.messages.append(message)
        self.begun.set()


@asynccontextmanager
async def tools(server: RunningServer, folder: Path, *options: str) -> AsyncIterator[Client]:
    """A client of `metaspec mcp`."""
    arguments = ["-m", "metaspec", "mcp", "--folder", str(folder), "--url", server.url, *options]
    async with Client(StdioServerParameters(command=sys.executable, args=arguments)) as client:
        yield client


async def answer(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured answer of a tool."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, text(result)
    return content(result)


def content(result: CallToolResult) -> dict[str, Any]:
    """The structured content of an answer."""
    found = result.structured_content
    assert isinstance(found, dict)
    return found


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    """The message of a tool that refuses."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result
    return text(result)


def text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


@pytest.fixture
def folder(tmp_path: Path, structures: np.ndarray) -> Path:
    working = tmp_path / "working"
    working.mkdir()
    np.save(working / "structures.npy", structures)
    np.save(tmp_path / "outside.npy", structures)
    return working


async def test_tools_have_schemas_and_say_what_is_served(server: RunningServer, folder: Path) -> None:
    async with tools(server, folder, "--max-steps", "7") as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(listed) == {"list_models", "predict", "gradient", "draw", "optimise", "verify"}
        for name, tool in listed.items():
            assert tool.description
            assert all(
                "description" in field or "default" in field for field in tool.input_schema["properties"].values()
            )
            assert (tool.output_schema is None) == (name == "draw")
        found = await answer(client, "list_models")
    assert found["models"] == [{"name": "diffractionnet", "version": "1", "ready": True, "reason": ""}]
    assert (found["pixels"], found["wavelengths_nm"]) == ([128, 128], [400, 700])
    assert (found["solver"], found["folder"], found["limits"]["steps"]) == (True, str(folder), 7)


async def test_predictions_are_those_of_the_surrogate(
    server: RunningServer, folder: Path, structures: np.ndarray, surrogate: Surrogate
) -> None:
    expected = surrogate.predict(structures)
    grey = np.full((1, 128, 128), 0.25, np.float32)
    np.save(folder / "grey.npy", grey)
    async with tools(server, folder) as client:
        found = await answer(
            client, "predict", structures="structures.npy", rows=[3, 1], wavelengths=3, save="spectra.npy"
        )
        bits = "bits:" + base64.b64encode(pack(structures[3:4]).tobytes()).decode()
        same = await answer(client, "predict", structures=bits)
        (unmade,) = (await answer(client, "predict", structures="grey.npy"))["structures"]
    by_row = {one["row"]: one for one in found["structures"]}
    assert set(by_row) == {1, 3}
    assert found["structures"][0]["min_efficiency"] >= found["structures"][1]["min_efficiency"]
    for row, one in by_row.items():
        efficiency = expected[row].colour_efficiency()[0]
        assert list(one["efficiency"].values()) == pytest.approx(efficiency, abs=1e-4)
        assert one["min_efficiency"] == pytest.approx(efficiency.min(), abs=1e-4)
        assert one["fill"] == pytest.approx(structures[row].mean(), abs=1e-4)
        assert one["spectra"]["wavelengths_nm"] == [400, 550, 700]
        assert one["spectra"]["channels"]["B"] == pytest.approx(expected.channel("B")[row, [0, 150, 300]], abs=1e-4)
    assert np.load(folder / found["saved"]) == pytest.approx(expected.values[[3, 1]], abs=1e-5)
    assert same["structures"][0] == by_row[3] | {"row": 0, "spectra": None}
    assert (unmade["solid_nm"], unmade["void_nm"], unmade["fill"]) == (None, None, 0.25)


async def test_conditions(conditioned: RunningServer, folder: Path, structures: np.ndarray, direct: Direct) -> None:
    at: dict[str, Any] = {"distance_um": 1.25, "incidence": [3, -4.5]}
    async with tools(conditioned, folder) as client:
        listed = (await answer(client, "list_models"))["conditions"]
        await answer(client, "predict", structures="structures.npy", conditions=at, save="spectra.npy")
        refused = await refusal(client, "gradient", structures="structures.npy", conditions={"distance_um": 4})
        await answer(client, "optimise", folder="run", steps=3, starts=1, conditions=at)
    assert listed == [str(condition) for condition in CONDITIONS]
    np.testing.assert_allclose(np.load(folder / "spectra.npy"), direct.spectra(structures, **at), rtol=1e-4, atol=1e-5)
    assert "distance_um must lie between 1 and 3 um, got 4" in refused
    assert read_report(folder / "run").conditions == at
    spectra, designs = np.load(folder / "run" / "spectra.npy"), np.load(folder / "run" / "designs.npy")
    np.testing.assert_allclose(spectra, direct.spectra(designs, **at), rtol=1e-4, atol=1e-5)


async def test_gradients_are_summed_over_tiles(
    server: RunningServer, folder: Path, structures: np.ndarray, surrogate: Surrogate
) -> None:
    value, gradient, _ = surrogate.predict_and_gradient(structures[2:3], objectives.by_name("red"))
    async with tools(server, folder) as client:
        found = await answer(
            client, "gradient", structures="structures.npy", rows=[2], objective="red", tiles=4, save="gradient.npy"
        )
    (one,) = found["structures"]
    tiles = gradient[0].reshape(4, 32, 4, 32).sum((1, 3))
    assert one["value"] == pytest.approx(value[0], rel=1e-3)
    assert np.array(one["tiles"]) == pytest.approx(tiles, rel=1e-3, abs=1e-3 * np.abs(tiles).max())
    filled = (gradient[0] * (1 - structures[2])).reshape(4, 32, 4, 32).sum((1, 3))
    best = one["fill_next"][0]
    row, column = divmod(int(filled.argmax()), 4)
    assert (best["rows"], best["columns"]) == ([32 * row, 32 * row + 32], [32 * column, 32 * column + 32])
    assert best["gain"] == pytest.approx(filled.max(), rel=1e-3)
    assert np.load(folder / "gradient.npy") == pytest.approx(gradient, abs=1e-6)


async def test_drawings_are_pictures(server: RunningServer, folder: Path) -> None:
    async with tools(server, folder) as client:
        result = await client.call_tool("draw", {"structures": "structures.npy", "row": 4, "save": "drawing.png"})
        alone = await client.call_tool("draw", {"structures": "structures.npy", "show": "spectra"})
    assert "structures.npy, row 4: predicted min efficiency" in text(result)
    pictures = [block for block in result.content if isinstance(block, ImageContent)]
    for picture, kind in zip(pictures, ("structure", "spectra"), strict=True):
        png = base64.b64decode(picture.data)
        assert picture.mime_type == "image/png"
        assert Image.open(io.BytesIO(png)).size[0] > 600
        assert (folder / f"drawing-{kind}.png").read_bytes() == png
    assert [block.type for block in alone.content] == ["text", "image"]


async def test_a_cancelled_optimisation_resumes_and_ends_as_if_uninterrupted(
    server: RunningServer, folder: Path
) -> None:
    before, after = Notices(), Notices()
    async with tools(server, folder, "--max-seconds", "300") as client:
        call = asyncio.create_task(client.call_tool("optimise", LONG_RUN, progress_callback=before))
        await asyncio.wait([call, asyncio.create_task(before.begun.wait())], return_when=asyncio.FIRST_COMPLETED)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await answer(client, "optimise", folder="other", steps=1, starts=1)  # waits until the cancelled one has stopped
        assert (folder / "run" / "checkpoint.npz").exists()
        assert not (folder / "run" / "report.json").exists()
        result = await client.call_tool("optimise", LONG_RUN, progress_callback=after)
        whole = await answer(client, "optimise", **LONG_RUN | {"folder": "whole"})
        again = await answer(client, "optimise", **LONG_RUN)
        from_run = await answer(client, "predict", structures="run", rows=[0])
    assert not result.is_error, text(result)
    run = content(result)
    assert after.seen[0][0] > before.seen[0][0]
    assert after.seen[-1] == (300.0, 300.0)
    assert all(message is not None and message.startswith("best binary design 0.") for message in after.messages)
    assert run["finished"]
    assert run["count"] == len(run["designs"]) == 2
    assert not (folder / "run" / "checkpoint.npz").exists()
    for name in ("designs.npy", "spectra.npy", "history.csv"):
        assert (folder / "run" / name).read_bytes() == (folder / "whole" / name).read_bytes()
    assert (again["designs"], again["best"]) == (run["designs"], run["best"])
    assert run["best"] == whole["best"] == pytest.approx(read_report(folder / "run").designs[0].objective, rel=1e-3)
    for file in ("structure", "layout", "picture"):
        assert (folder / run["designs"][0][file]).exists()
    assert from_run["structures"][0]["min_efficiency"] == run["designs"][0]["min_efficiency"]


async def test_a_client_that_leaves_ends_the_optimisation_which_resumes(server: RunningServer, folder: Path) -> None:
    before = Notices()
    async with tools(server, folder, "--max-seconds", "300") as client:
        call = asyncio.create_task(client.call_tool("optimise", LONG_RUN, progress_callback=before))
        await asyncio.wait([call, asyncio.create_task(before.begun.wait())], return_when=asyncio.FIRST_COMPLETED)
        last, _ = before.seen[-1]
    with pytest.raises(MCPError, match="closed"):
        await call
    assert (folder / "run" / "checkpoint.npz").exists()
    async with tools(server, folder, "--max-seconds", "0.1") as client:
        found = await answer(client, "optimise", **LONG_RUN)
    assert found["step"] > last


async def test_an_optimisation_answers_when_its_seconds_are_over(server: RunningServer, folder: Path) -> None:
    async with tools(server, folder, "--max-seconds", "0.1") as client:
        found = await answer(client, "optimise", start="structures.npy", **LONG_RUN | {"starts": 6})
        assert 0 < found["step"] < 300
        further = await answer(client, "optimise", start="structures.npy", **LONG_RUN | {"starts": 6})
        other = await refusal(client, "optimise", **LONG_RUN)
    assert (found["finished"], found["steps"], found["designs"]) == (False, 300, [])
    assert further["step"] > found["step"]
    assert further["best"] >= found["best"]
    assert "belongs to an optimisation with other settings" in other


@pytest.mark.slow
async def test_designs_are_verified_by_the_solver(server: RunningServer, folder: Path, structures: np.ndarray) -> None:
    notices = Notices()
    asked = {"structures": "run", "cells": 24, "best": 2}
    async with tools(server, folder, "--max-seconds", "0.1") as client:
        while not (await answer(client, "optimise", folder="run", steps=2, starts=2))["finished"]:
            pass
        short = await answer(client, "verify", **asked)
        assert (short["finished"], short["simulations"], short["designs"]) == (False, 2, [])
    async with tools(server, folder, "--max-seconds", "500") as client:
        result = await client.call_tool("verify", asked, progress_callback=notices)
        assert not result.is_error, text(result)
        bits = "bits:" + base64.b64encode(pack(structures[:1]).tobytes()).decode()
        alone = await answer(client, "verify", structures=bits, cells=24)
        assert "cells" in await refusal(client, "verify", structures="run", cells=81)
        assert "no density_metasurface" in await refusal(client, "verify", structures="run/report.json", cells=24)
    found = content(result)
    assert notices.seen[-1] == (2.0, 2.0)
    assert (folder / "run" / VERIFY).exists()
    report = read_report(folder / "run")
    with SolverSource(cells=24, workers=1) as solver:
        designs = np.load(folder / "run" / "designs.npy")
        expected = solver.predict(np.concatenate([designs, structures[:1]])).colour_efficiency().min(axis=1)
    assert [one["simulated_min"] for one in found["designs"]] == pytest.approx(expected[:2], abs=1e-3)
    assert [one["predicted_min"] for one in found["designs"]] == pytest.approx(
        [design.predicted.min_efficiency for design in report.designs], abs=1e-4
    )
    assert alone["designs"][0]["simulated_min"] == pytest.approx(expected[2], abs=1e-3)
    assert (folder / alone["folder"] / VERIFY).exists()


async def test_nothing_outside_the_folder_is_touched(server: RunningServer, folder: Path) -> None:
    (folder / "link.npy").symlink_to(folder.parent / "outside.npy")
    (folder / "run").mkdir()
    (folder / "run" / "designs.npy").symlink_to(folder.parent / "outside.npy")
    outside = ("../outside.npy", str(folder.parent / "outside.npy"), "link.npy", "run")
    async with tools(server, folder) as client:
        for name in outside:
            message = await refusal(client, "predict", structures=name)
            assert message.startswith("predict: structures must lie in the working folder")
        for name in ("../spectra.npy", "link.npy"):
            message = await refusal(client, "predict", structures="structures.npy", save=name)
            assert message.startswith("predict: save must lie in the working folder")
        assert "folder must lie in" in await refusal(client, "optimise", folder="../run")
        assert "folder must be a folder inside" in await refusal(client, "optimise", folder=".")
        assert "run/designs.npy is a link out of" in await refusal(client, "optimise", folder="run")
        assert "run/designs.npy is a link out of" in await refusal(client, "verify", structures="run")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["outside.npy", "working"]


async def test_bad_input_is_refused_by_name(server: RunningServer, folder: Path, structures: np.ndarray) -> None:
    np.save(folder / "wrong.npy", structures + 1.0)
    short = "bits:" + base64.b64encode(bytes(2000)).decode()
    async with tools(server, folder, "--max-structures", "3", "--max-starts", "4") as client:

        async def said(tool: str, **arguments: Any) -> str:
            return await refusal(client, tool, **arguments)

        assert "structures must be 1 to 3, the limit of this server, got 5" in await said(
            "predict", structures="structures.npy"
        )
        assert "rows must be from 0 to 4" in await said("predict", structures="structures.npy", rows=[5])
        assert "rows: Input should be a valid list, got 'all'" in await said("predict", structures="a.npy", rows="all")
        assert "wavelengths: Input should be less than or equal to 301" in await said(
            "predict", structures="structures.npy", rows=[0], wavelengths=302
        )
        assert "2048 bytes for each structure of 128 x 128 pixels, got 2000" in await said("predict", structures=short)
        assert "must be base64" in await said("predict", structures="bits:***")
        assert "must lie between 0 (void) and 1 (solid)" in await said("predict", structures="wrong.npy")
        assert "nowhere.npy is missing" in await said("draw", structures="nowhere.npy")
        assert "save must end in .npy, got 'a.txt'" in await said("predict", structures="structures.npy", save="a.txt")
        assert "no model 'other' here" in await said("predict", structures="structures.npy", model="other")
        assert "predict has no argument row, only structures, rows" in await said("predict", structures="a.npy", row=1)
        assert "objective must be one of bayer" in await said(
            "gradient", structures="structures.npy", rows=[0], objective="best"
        )
        assert "starts must be at most 4, the limit of this server, got 5" in await said(
            "optimise", folder="a", starts=5
        )
        assert "steps: Input should be greater than or equal to 1, got 0" in await said("optimise", folder="a", steps=0)
        assert "radius" in await said("optimise", folder="a", radius_nm=5000)
        assert not (folder / "a").exists()
    async with tools(server, folder, "--model", "other") as client:
        assert "no model 'other' here" in await refusal(client, "list_models")


def test_the_example_of_the_document(server: RunningServer, folder: Path) -> None:
    document = Path(__file__).parents[2] / "docs" / "mcp.md"
    (example,) = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    example = example.replace('"--folder", "."', f'"--folder", ".", "--url", "{server.url}"')
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-c", example]
    result = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    assert server.url in example
    assert "'diffractionnet'" in result.stdout
