"""Time and peak memory of retraining on one's own data, from raw files to a published model, at any number of samples.

Makes raw files as a user has them: random structures, and smooth spectra in three channels that follow from the structure, so
that a network can learn them. Then it imports them, loads the data set, trains for some steps of an epoch, validates, reports
and exports. Each part is the command that a user gives, in a process of its own. The time of a whole epoch is extrapolated from
the steps. Parts that are finished are kept in OUT: the same command resumes. At the end, OUT keeps the table only.

    python benchmarks/retrain_scale.py --rows 300000 --out runs/retrain-scale
    python benchmarks/retrain_scale.py --rows 2000 --steps 20 --out runs/retrain-scale-try
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tqdm import tqdm

from metaspec_contract.files import write_json, write_text
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS, Structure
from metaspec_simulation.data.families import SPLITS
from metaspec_simulation.data.store import read_dataset

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
FILE_ROWS, BLOCK = 10_000, 1000  # rows of a raw file, and rows that are made at a time
PRESET, BATCH = "fast", 8  # batch size of the preset
RAW, DATA, RUNS, MODELS, PARTS = "raw", "data", "runs", "models", "parts.json"


@dataclass(frozen=True)
class Part:
    """One part of the way, measured.

    Attributes:
        seconds: duration.
        peak_mib: largest resident memory of the process in MiB.
        note: what it did.
    """

    seconds: float
    peak_mib: float
    note: str


def make_raw(folder: Path, rows: int) -> None:
    """Write pairs of raw files, the same ones every time."""
    folder.mkdir()
    wavelengths = len(Process().wavelengths_nm)
    with tqdm(total=rows, desc="raw files", unit="row", disable=None) as bar:
        for number, first in enumerate(range(0, rows, FILE_ROWS)):
            count = min(FILE_ROWS, rows - first)
            structures = open_memmap(
                folder / f"binary_dataset_128_{number}.npy", "w+", np.uint8, (count, 1, PIXELS, PIXELS)
            )
            spectra = open_memmap(folder / f"spectra_latest_{number}.npy", "w+", np.float32, (count, 3, wavelengths))
            for start in range(0, count, BLOCK):
                some = random_structures(np.random.default_rng([0, first + start]), min(BLOCK, count - start))
                structures[start : start + len(some), 0] = some
                spectra[start : start + len(some)] = smooth_spectra(some, wavelengths)
                bar.update(len(some))


def random_structures(rng: np.random.Generator, count: int) -> Structure:
    """Gaussian random fields cut at 0, uint8 (count, 128, 128)."""
    k, half = np.fft.fftfreq(PIXELS, 1 / PIXELS), np.fft.rfftfreq(PIXELS, 1 / PIXELS)
    kept = np.exp(-(k[:, None] ** 2 + half**2) / 50)
    noise = rng.standard_normal((count, PIXELS, PIXELS), np.float32)
    fields = np.fft.irfft2(np.fft.rfft2(noise) * kept.astype(np.float32), s=(PIXELS, PIXELS))
    return (fields > 0).astype(np.uint8)


def smooth_spectra(structures: Structure, wavelengths: int) -> NDArray[np.float32]:
    """Efficiencies from .05 to .25 that follow from the coarse shape of structures, float32 (N, 3, wavelengths)."""
    rng = np.random.default_rng(1)
    coarse = structures.reshape(-1, 8, 16, 8, 16).mean(axis=(2, 4)).reshape(-1, 64) - 0.5
    knots = np.tanh(coarse @ rng.standard_normal((64, 3 * 12))).reshape(-1, 3, 12)
    nearness = (np.linspace(0, 11, wavelengths)[None] - np.arange(12)[:, None]) ** 2
    basis = np.exp(-nearness)
    spectra: NDArray[np.float32] = (0.15 + 0.1 * knots @ (basis / basis.sum(axis=0))).astype(np.float32)
    return spectra


def measured(command: list[str], note: str) -> Part:
    """Run a command in a process of its own; its output is shown.

    Raises:
        SystemExit: it failed.
    """
    print(f"$ {' '.join(command)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"retrain_scale: exit status {process.returncode} of {command[0]}")
    return Part(time.monotonic() - started, usage.ru_maxrss / 1024, note)


def load_command(out: Path) -> list[str]:
    """A command that loads the data set as the training does."""
    code = (
        "from metaspec_training.data.datamodule import SpectraDataModule\n"
        f"data = SpectraDataModule({str(out / DATA)!r})\n"
        "print(len(data.train_samples()), 'to train on')"
    )
    return [sys.executable, "-c", code]


def newest_run(out: Path) -> Path:
    """Folder of the training's newest run."""
    return max((out / RUNS / "lightning_logs").iterdir(), key=lambda folder: folder.stat().st_mtime)


def epoch_note(out: Path) -> str:
    """Time of a step, and of an epoch, by the training's log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(newest_run(out)))
    log.Reload()
    times = [event.wall_time for event in log.Scalars("train/loss")]
    step = (times[-1] - times[0]) / (len(times) - 1)
    validation = log.Scalars("validation/mae")[-1].wall_time - times[-1]
    split = read_dataset(out / DATA)["split"][:]
    steps = math.ceil(np.count_nonzero(split == SPLITS.index("train")) / BATCH)
    return (
        f"{len(times)} steps of {BATCH}, {1000 * step:.0f} ms each, so {steps * step / 60:.0f} min for an epoch of {steps}; "
        f"validation {validation:.0f} s"
    )


def table(parts: dict[str, Part], rows: int) -> str:
    """The result in Markdown."""
    head = f"{rows} samples, preset {PRESET}, {os.cpu_count()} cores\n\n| part | time | peak memory | |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {name} | {part.seconds:.0f} s | {part.peak_mib / 1024:.2f} GiB | {part.note} |\n"
        for name, part in parts.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and, until the end, of all files")
    parser.add_argument("--steps", type=int, default=100, help="steps of training")
    parser.add_argument("--limit", type=int, default=2000, help="structures of a split that are evaluated")
    parser.add_argument("--keep", action="store_true", help="keep raw files, data set, run and models")
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)  # the first part, in its own process
    arguments = parser.parse_args()
    if arguments.rows < 100 or arguments.steps < 2 or arguments.limit < 2:
        parser.error("--rows must be at least 100, --steps and --limit at least 2")
    out, rows = arguments.out.absolute(), arguments.rows
    if arguments.make:
        make_raw(out / RAW, rows)
        return
    out.mkdir(parents=True, exist_ok=True)
    kept, asked = out / PARTS, {"rows": rows, "steps": arguments.steps, "limit": arguments.limit}
    finished = out / "table.md"
    document = json.loads(kept.read_text()) if kept.exists() else {"asked": asked, "parts": {}}
    if document["asked"] != asked:
        parser.error(f"{out} holds a run of {document['asked']}: choose another folder")
    if finished.exists():
        print(finished.read_text())
        return
    parts = {name: Part(**part) for name, part in document["parts"].items()}

    def do(name: str, command: list[str], note: str, made: Path | None = None) -> None:
        if name in parts:
            return
        if made is not None:  # what an interrupted part left behind
            shutil.rmtree(made, ignore_errors=True)
        parts[name] = measured(command, note)
        write_json(kept, {"asked": asked, "parts": {part: asdict(found) for part, found in parts.items()}})

    data, models = out / DATA, out / MODELS
    again = [sys.executable, str(Path(__file__).absolute()), "--make", "--rows", str(rows), "--out", str(out)]
    do("raw files", again, "random structures, three channels", out / RAW)
    imported = [
        str(SCRIPTS / "metaspec-simulate"),
        "import",
        str(out / RAW),
        "--out",
        str(data),
        "--process",
        "default",
    ]
    do("import", imported, f"{rows} rows", data)
    do("load", load_command(out), "as the training does")
    settings = [f"--config={ROOT / 'training' / 'configs' / PRESET}.yaml", f"--data.path={data}", "--data.positions=1"]
    settings += [f"--data.batch_size={BATCH}", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    settings += [f"--trainer.limit_train_batches={arguments.steps}", f"--trainer.default_root_dir={out / RUNS}"]
    do("training", [sys.executable, str(ROOT / "training" / "train.py"), *settings], "", out / RUNS)
    if not parts["training"].note:
        parts["training"] = Part(parts["training"].seconds, parts["training"].peak_mib, epoch_note(out))
        write_json(kept, {"asked": asked, "parts": {part: asdict(found) for part, found in parts.items()}})
    run, limit = newest_run(out), str(arguments.limit)
    report = [str(SCRIPTS / "metaspec-train"), "report", str(run), f"--limit={limit}"]
    do("report", report, f"on {limit} structures at most")
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    export = [str(SCRIPTS / "metaspec-export"), checkpoint, "--repository", str(models), "--data", str(data)]
    do(
        "export",
        [*export, "--limit", limit, "--allow-dirty"],
        f"fp32 and gradient, on {limit} structures at most",
        models,
    )
    text = table(parts, rows)
    write_text(finished, text)
    if not arguments.keep:
        for folder in (RAW, DATA, RUNS, MODELS):
            shutil.rmtree(out / folder, ignore_errors=True)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nretrain_scale: interrupted; the same command resumes", file=sys.stderr)
        raise SystemExit(130) from None
