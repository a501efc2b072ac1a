"""Runs that end in the middle go on to the bits of an undisturbed run, and each says what happened.

`python3 tests/kill_runs.py --kills 30 --full-disk 10 --interrupts 10 --pairs 5` ends runs at random moments: by
SIGKILL, by a write that does not fit on the disk, by SIGINT, and by another run in the same folder. It compares what
the runs end with: weights, state, history but seconds, and the log. It exits with 1 where a bit is lost or a run ends
without its sentence. Each life of a run is a process of its own, forked from one that has imported JAX.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
import optax

import jaxmlp as jm
from jaxmlp import files, trees

EPOCHS = 40
PAUSE = 0.01  # seconds in each epoch, so that some signals come while the run trains
OTHERS = '{"epoch": 7, "cost": 0.5}\nwritten by others\n'  # lines that a log had before
SAVED = re.compile(rf"KeyboardInterrupt: epoch (\d+) of {EPOCHS} is saved in .*; the same call goes on from there")
FULL = re.compile(r"OSError: \[Errno 27\] File too large: '(.*)'\n$")

Fork = multiprocessing.get_context("fork")


class Run:
    """A run in a folder of its own: its checkpoints, its log, what its lives said, and what it ended with."""

    def __init__(self, folder, others=OTHERS):
        self.folder, self.others = Path(folder), others
        self.folder.mkdir()
        self.log, self.said = self.folder / "log.jsonl", self.folder / "said.txt"
        self.log.write_text(others)
        self.checkpoint = self.folder / "run" / "last.safetensors"

    def start(self, largest=None):
        """The next life, which dies of a file larger than `largest` bytes."""
        self.said.write_text("")
        life = Fork.Process(target=live, args=(self, largest))
        life.start()
        return life

    def finish(self):
        """Lets a last life end, and gives what the run ended with."""
        life = self.start()
        life.join()
        expect(life.exitcode == 0, f"the last life ended with {life.exitcode}", self)
        return self.ended_with()

    def ended_with(self):
        (tensors, about), (saved, told) = (
            files.read(path, "tree") for path in (self.folder / "result.safetensors", self.checkpoint))  # fmt: skip
        lines = self.log.read_text()
        rows = [json.loads(line) for line in lines.removeprefix(self.others).splitlines()]
        expect(lines.startswith(self.others), "the log lost lines of others", self)
        expect([row["epoch"] for row in rows] == [*range(1, EPOCHS + 1)], "the log has not each epoch once", self)
        expect({path.name for path in (self.folder / "run").iterdir()} <= {"last.safetensors", "best.safetensors"},
               "the folder has other files", self)  # fmt: skip
        history = told["about"]["history"]
        for entry in (about["about"], history, *rows):
            entry.pop("seconds")
        arrays = [{name: array.tobytes() for name, array in held.items()} for held in (tensors, saved)]
        return arrays, about["about"], history, rows

    def epochs_saved(self):
        """The epochs in the newest checkpoint, which is whole; 0 where there is none yet."""
        if not self.checkpoint.exists():
            return 0
        about = files.read(self.checkpoint, "tree")[1]["about"]
        expect(len(about["history"].get("epoch", [])) == about["done"], "the history is not that of the state", self)
        return about["done"]

    def wait_for_epoch(self, number, life):
        """Waits until the log has the row of that epoch, or the life has ended."""
        while f'\n{{"epoch": {number},' not in self.log.read_text() and life.exitcode is None:
            time.sleep(0.001)


def expect(true, what, run):
    if not true:
        raise AssertionError(f"{what}; in {run.folder}, where the last life said:\n{run.said.read_text()[-2000:]}")


def live(run, largest):
    """A life: everything at once, dropout, noise, an average, momentum, a rule that learns, validation, checkpoints."""
    said = os.open(run.said, os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1), os.dup2(said, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("started", file=sys.stderr)
    if largest is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    net = jm.MLP((3, 4, 2), hidden="tanh", output="softmax", loss="cross_entropy")
    X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    Y = (X[:, 0] > 0).astype(np.int32)
    result = jm.fit(
        net, jm.init(net, jax.random.key(0)), (X[:20], Y[:20]), optimizer=optax.sgd(0.1, momentum=0.9), epochs=EPOCHS,
        batch_size=8, key=jax.random.key(1), keep=0.8, input_noise=0.1, average=0.9, rule=jm.rules.kolen_pollack(),
        validation=(X[20:], Y[20:]), checkpoints=run.folder / "run", checkpoint_every=3, log=run.log,
        progress=False,
        callback=lambda epoch, metrics: time.sleep(PAUSE),
    )  # fmt: skip
    history = {name: column.tolist() for name, column in result.history.items()}
    if largest is None:
        trees.write_tree(run.folder / "result.safetensors", (result.params, result.last_params, result.state), history)


def kill(run, life, number=signal.SIGKILL):
    """Ends a life; whether it was still there."""
    os.kill(life.pid, number)
    life.join()
    return life.exitcode == -number


def fill_disk(run, largest):
    """A life whose files cannot be larger than `largest`: whether one was, and which."""
    before = run.epochs_saved()
    life = run.start(largest)
    life.join()
    if life.exitcode == 0:
        return None
    named = FULL.search(run.said.read_text())
    expect(named is not None, f"a full disk ended the life with {life.exitcode}", run)
    expect(run.epochs_saved() >= before, "a checkpoint went", run)
    return Path(named[1]).name


def interrupt(run, life, again_after=None):
    """Sends SIGINT to a life, and again after some seconds. Says how it ended."""
    while not run.said.read_text() and life.exitcode is None:
        time.sleep(0.001)  # a process that is just forked hears no signal
    os.kill(life.pid, signal.SIGINT)
    if again_after is not None:
        life.join(again_after)
        if life.exitcode is None:
            os.kill(life.pid, signal.SIGINT)
    began = time.perf_counter()
    life.join(20)
    expect(life.exitcode is not None, "a life did not end", run)
    took, said, saved = time.perf_counter() - began, run.said.read_text(), run.epochs_saved()
    if life.exitcode == 0:
        lost = "Exception ignored" in said  # Python drops what is raised in a callback, such as one of JAX's
        expect(took < 2 or lost, "SIGINT was not heard", run)
        return f"at the end, after {took:.2f} s{', lost in a callback of Python' if lost else ''}"
    twice = again_after is not None  # the second may come while the first one's sentence is printed
    expect(twice or "KeyboardInterrupt" in said, f"SIGINT ended the life with {life.exitcode}", run)
    if sentence := SAVED.search(said):
        expect(saved == int(sentence[1]), f"{saved} epochs are saved", run)
        return f"saved after {saved} epochs, in {took:.2f} s"
    late = "this epoch ends first" in said
    expect(twice or not late, "the sentence is missing", run)
    return f"at once{' by the second' if late else ', before or after training'}, in {took:.2f} s"


def pair(run, then_kill=None):
    """Two lives in one folder: how each ended. After `then_kill` seconds the first is killed."""
    lives = [run.start(), run.start()]
    if then_kill is not None:
        lives[0].join(then_kill)
        os.kill(lives[0].pid, signal.SIGKILL)
    for life in lives:
        life.join()
    codes, said = [life.exitcode for life in lives], run.said.read_text()
    expect(set(codes) <= ({0, 1} if then_kill is None else {0, 1, -9}), f"the two ended with {codes}", run)
    expect(
        (1 in codes) == ("which another run is writing now" in said) and (1 not in codes or "ValueError" in said),
        f"{codes}",
        run,
    )
    expect(then_kill is not None or 0 in codes, "none of the two went on", run)
    return {0: "done", 1: "refused", -9: "killed"}[codes[0]] + " and " + {0: "done", 1: "refused"}[codes[1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = {"kills": 30, "terminations": 5, "full-disk": 10, "interrupts": 10, "pairs": 5, "seed": 0}
    for name, default in kinds.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--quick", action="store_true", help="one run that ends in every way, one after another")
    given = {name.replace("_", "-"): value for name, value in vars(parser.parse_args()).items()}
    with TemporaryDirectory() as folder:
        use_cache(folder)
        trial, quick = Trial(Path(folder), random.Random(given.pop("seed"))), given.pop("quick")
        trial.every_way() if quick else trial.all(given)


def use_cache(folder):
    """Programs are compiled once for all lives."""
    jax.config.update("jax_compilation_cache_dir", f"{folder}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class Trial:
    def __init__(self, folder, moments):
        self.folder, self.moments, self.runs = folder, moments, 0
        whole = self.new()
        self.whole = whole.finish()
        self.bytes = whole.checkpoint.stat().st_size, whole.log.stat().st_size - len(OTHERS)

    def new(self, others=OTHERS):
        self.runs += 1
        return Run(self.folder / f"run{self.runs}", others)

    def same(self, run, ended):
        for name, first, second in zip(("arrays", "result", "history", "log"), self.whole, ended, strict=True):
            expect(first == second, f"{name}: not the bits of the undisturbed run", run)

    def all(self, given):
        began, again = time.perf_counter(), self.new()
        self.same(again, again.finish())
        self.seconds = time.perf_counter() - began  # of a life with its programs compiled
        print(f"an undisturbed run of {EPOCHS} epochs: {self.seconds:.1f} s, checkpoint and log {self.bytes} bytes")
        self.kills(given["kills"], signal.SIGKILL)
        self.kills(given["terminations"], signal.SIGTERM)
        self.each("full-disk", given["full-disk"], self.full_disk)
        self.each("interrupts", given["interrupts"], self.interruption)
        self.each("pairs", given["pairs"], self.pairing)

    def kills(self, count, number):
        """So many lives are killed; a run that ends before its kill is compared, and another begins."""
        run, killed, ends = self.new(), 0, []
        while killed < count:
            life = run.start()
            self.wait(run, life)
            done = not kill(run, life, number)
            killed += not done
            ends.append(f"{run.epochs_saved()}{' (done)' if done else ''}")
            if done:
                self.same(run, run.ended_with())
                run = self.new()
        if count:
            self.same(run, run.finish())
            print(f"{number.name}: {killed} lives, epochs saved then: {', '.join(ends)}; 0 bits lost", flush=True)

    def every_way(self):
        """One run is killed, fills the disk, is interrupted, and meets another in its folder."""
        run, ends = self.new(), []
        life = run.start()
        run.wait_for_epoch(5, life)
        expect(kill(run, life) and run.epochs_saved() >= 3, "a kill came too late", run)
        ends.append(f"killed after {run.epochs_saved()} epochs")
        ends.append(f"{fill_disk(run, run.checkpoint.stat().st_size + 800)} not written after {run.epochs_saved()}")
        life = run.start()
        run.wait_for_epoch(run.epochs_saved() + 5, life)
        ends.append(interrupt(run, life))
        expect(ends[-1].startswith("saved"), f"SIGINT: {ends[-1]}", run)
        ends.append(pair(run))
        self.same(run, run.ended_with())
        print(f"{', '.join(ends)}; 0 bits lost")

    def wait(self, run, life):
        """Until a random moment of a life: half of them while it trains."""
        if self.moments.random() < 0.5:
            time.sleep(self.moments.uniform(0, self.seconds))
        else:
            run.wait_for_epoch(self.moments.randint(min(run.epochs_saved() + 1, EPOCHS), EPOCHS), life)
            time.sleep(self.moments.uniform(0, 2 * PAUSE))

    def each(self, name, count, one):
        for index in range(count):
            run = self.new()
            how = one(run, index)
            self.same(run, run.finish())
            print(f"{name} {index + 1}: {how}; 0 bits lost", flush=True)

    def full_disk(self, run, index):
        """A checkpoint does not fit, or every other time the log, in which others have written much before."""
        checkpoint, log = self.bytes
        largest = self.moments.randint(checkpoint // 3, checkpoint - 200)
        if index % 2:
            run.others += "another line of others\n" * (checkpoint // 20)
            run.log.write_text(run.others)
            largest = len(run.others) + self.moments.randint(0, log - 200)
        named = fill_disk(run, largest)
        expect(named is not None, "the limit held nothing up", run)
        return f"no file above {largest} bytes: {named} not written, {run.epochs_saved()} epochs saved"

    def interruption(self, run, index):
        life = run.start()
        self.wait(run, life)
        if life.exitcode is not None:
            return "ended before"
        return interrupt(run, life, self.moments.uniform(0, 0.02) if index % 3 == 2 else None)

    def pairing(self, run, index):
        return pair(run, self.moments.uniform(0, self.seconds) if index % 2 else None)


if __name__ == "__main__":
    main()
