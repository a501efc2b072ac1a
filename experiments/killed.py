"""A run is killed twenty times and resumes each time; its final weights equal those of an unbroken run.

Each life of the run is a process, which SIGKILL ends at a random moment: while it starts, compiles, trains or writes
its checkpoint. Expect every checkpoint to be readable and the final weights to be equal bit for bit, on the same
machine with the same versions and number of devices.
"""

import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import files

LIFE = """
import sys, jax, optax
jax.config.update("jax_compilation_cache_dir", sys.argv[1] + "/compiled")
import jaxmlp as jm
from experiments import datasets

folder, epochs, examples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pictures = datasets.load("mnist")
net = jm.MLP((784, 64, 32, 10), output="softmax", loss="cross_entropy")
result = jm.fit(
    net, jm.init(net, jax.random.key(0)), (pictures.X[:examples], pictures.Y[:examples]),
    optimizer=optax.adam(optax.cosine_decay_schedule(1e-3, epochs * -(-examples // 64))), epochs=epochs,
    batch_size=64, key=jax.random.key(1), preprocess=jm.data.scale_pixels, keep=0.9, average=0.99, monitor=True,
    validation=(pictures.X_test[:1000], pictures.Y_test[:1000]), checkpoints=folder, log=folder + "/log.jsonl",
    progress=False,
)
jm.save(folder + "/final.safetensors", net, result.last_params)
"""


@dataclass(frozen=True)
class Settings:
    kills: int = 20  # how often the run is killed
    epochs: int = 400  # epochs of the run
    examples: int = 2000  # examples of MNIST
    seed: int = 0  # seed of the random moments
    quick: bool = False  # 2 kills, a tenth of the epochs


def run(settings: Settings, out: Output) -> dict[str, float]:
    if min(settings.kills, settings.epochs, settings.examples) < 1:
        raise ValueError(f"kills, epochs and examples are {settings.kills}, {settings.epochs}, {settings.examples}; "
                         "expected at least 1 of each")  # fmt: skip
    pictures = datasets.load("mnist")  # fails here, not in every life
    datasets.check_amount("examples", settings.examples, len(pictures.X))
    kills, epochs = (2, max(1, settings.epochs // 10)) if settings.quick else (settings.kills, settings.epochs)
    with TemporaryDirectory() as whole, TemporaryDirectory() as broken:
        began, life = time.perf_counter(), _start_life(whole, epochs, settings.examples)
        while not (Path(whole) / "last.safetensors").exists() and life.poll() is None:
            time.sleep(0.02)
        start_up = time.perf_counter() - began
        _wait_for(life)
        longest = 2 * start_up + 2 * (time.perf_counter() - began - start_up) / kills
        moments, rows, same = random.Random(settings.seed), [], True
        while sum(row["end"] == "killed" for row in rows) < kills:
            life, moment = _start_life(broken, epochs, settings.examples), moments.uniform(0, longest)
            try:
                _wait_for(life, timeout=moment)
                end = "finished"
            except subprocess.TimeoutExpired:
                life.kill()
                life.wait()
                end = "killed"
            rows.append({"life": str(len(rows) + 1), "seconds": f"{moment:.2f}",
                         "epochs saved": str(_count_saved_epochs(Path(broken))), "end": end})  # fmt: skip
            if end == "finished":  # it ended before its kill: another run begins
                same &= _are_equal(whole, broken)
                for path in Path(broken).glob("*.*"):
                    path.unlink()
        _wait_for(_start_life(broken, epochs, settings.examples))
        same &= _are_equal(whole, broken)
    out.table(f"{kills} kills of a run of {epochs} epochs", rows)
    out.say(f"final weights after the kills: {'bit-identical' if same else 'DIFFERENT'}")
    out.close()
    return {"identical": float(same), "kills": float(kills)}


def _start_life(folder: str, epochs: int, examples: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", LIFE, folder, str(epochs), str(examples)])


def _wait_for(life: subprocess.Popen, timeout: float | None = None) -> None:
    if life.wait(timeout):
        raise RuntimeError(f"a life ended with status {life.returncode}; see its message above")


def _count_saved_epochs(folder: Path) -> int:
    """The number of epochs in the checkpoint that the next life will read; fails if it is not readable."""
    path = folder / "last.safetensors"
    return 0 if not path.exists() else len(files.read(path, "tree")[1]["about"]["history"].get("epoch", []))


def _are_equal(whole: str, broken: str) -> bool:
    """Whether both runs end with the same bits."""
    final = [jm.load(Path(folder) / "final.safetensors")[1] for folder in (whole, broken)]
    return all(np.array_equal(a, b) for one, other in zip(*final, strict=True) for a, b in zip(one, other, strict=True))
