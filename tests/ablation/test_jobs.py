"""Commands side by side: they meet, on cores of their own; one that fails lets the others save; Ctrl-C reaches all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ar_omni_jax.ablation import jobs
from ar_omni_jax.ablation.jobs import JobError, Jobs
from ar_omni_jax.machine import cores

ROOT = Path(__file__).resolve().parents[2]
# Writes its cores under its own name, and ends when the file of its partner is there (or fails after a minute).
MEETS = """
import os, pathlib, sys, time
own, partner = map(pathlib.Path, sys.argv[1:])
own.write_text(" ".join(map(str, sorted(os.sched_getaffinity(0)))))
deadline = time.monotonic() + 60
while not partner.exists():
    if time.monotonic() > deadline:
        sys.exit(9)
    time.sleep(0.02)
"""
# Saves for half a second when it is interrupted.
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5); pathlib.Path(sys.argv[1] + ".saved").touch(); sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path(sys.argv[1] + ".begun").touch()
time.sleep(60)
"""
needs_two_cores = pytest.mark.skipif(cores() < 2, reason="two cores are to be shared")


def test_one_after_the_other_by_default(tmp_path):
    order = []

    def work(piece, call):
        order.append(("begins", piece))
        call([sys.executable, "-c", "import time; time.sleep(0.05)"])
        order.append(("ends", piece))

    Jobs(1).run_all("abc", work)
    assert order == [(what, piece) for piece in "abc" for what in ("begins", "ends")]


@needs_two_cores
def test_two_run_at_once_and_share_no_core(tmp_path):
    names = [str(tmp_path / name) for name in "ab"]
    pairs = [names, names[::-1]]
    Jobs(2).run_all(pairs, lambda pair, call: call([sys.executable, "-c", MEETS, *pair]))
    shares = [set(Path(name).read_text().split()) for name in names]
    assert all(shares) and not shares[0] & shares[1]


@needs_two_cores
def test_what_is_called_apart_has_all_cores(tmp_path):
    every, some = (tmp_path / name for name in ("every", "some"))
    tells = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(str(len(os.sched_getaffinity(0))))"
    crew = Jobs(2)

    def work(piece, call):
        call([sys.executable, "-c", "import time; time.sleep(0.2);" + tells, str(some)])
        crew.call([sys.executable, "-c", "import time; time.sleep(0.2);" + tells, str(every)])

    crew.run_all([None], work)
    assert int(some.read_text()) < int(every.read_text()) == cores()


def test_shares_are_even_and_leave_no_core_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 5, 6, 7}, raising=False)
    assert jobs._shares(2) == [{1, 2}, {5, 6, 7}] and jobs._shares(5) == [{1}, {2}, {5}, {6}, {7}]
    assert jobs._shares(1) == [None]


@pytest.mark.parametrize("count", [0, 10_000])
def test_more_jobs_than_cores_are_refused(count):
    with pytest.raises(JobError, match=f"jobs={count}: between 1 and {cores()}"):
        Jobs(count)


@needs_two_cores
def test_one_that_fails_lets_the_others_save_and_is_named(tmp_path):
    begun = []

    def work(piece, call):
        begun.append(piece)
        if piece == "fails":
            while not (tmp_path / "run.begun").exists():
                time.sleep(0.02)
            call([sys.executable, "-c", "import sys; sys.exit(7)"])
        call([sys.executable, "-c", SAVES, str(tmp_path / "run")])

    with pytest.raises(JobError, match="exit code 7 of"):
        Jobs(2).run_all(["runs", "fails", "never begins"], work)
    assert (tmp_path / "run.saved").exists() and "never begins" not in begun


@needs_two_cores
def test_an_interruption_reaches_all_and_waits_for_them(tmp_path):
    driver = (
        "import sys\nfrom ar_omni_jax.ablation.jobs import Jobs\n"
        f"work = lambda name, call: call([sys.executable, '-c', {SAVES!r}, {str(tmp_path)!r} + '/' + name])\n"
        "try:\n    Jobs(2).run_all('abc', work)\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", driver], env=environment)
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"{name}.begun").exists() for name in "ab") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["a.saved", "b.saved"]
    assert not (tmp_path / "c.begun").exists()


@pytest.mark.parametrize(
    ("number", "ignored"),
    [(signal.SIGHUP, ()), (signal.SIGTERM, (signal.SIGINT,)), (signal.SIGTERM, (signal.SIGHUP,))],
    ids=["a closed terminal", "a job in the background of a script", "nohup"],
)
def test_the_runs_are_told_however_the_command_is_ended(tmp_path, number, ignored):
    """Its runs save within half a second; left alone they take a minute."""
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "dataset.json").write_text("{}")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "test.jsonl").write_text("{}\n")
    saves = SAVES.replace("signal.signal(signal.SIGINT, save)\n", "").replace(
        "time.sleep(60)\n", "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    save()\n"
    )
    driver = (
        "import sys\nfrom ar_omni_jax.ablation import command, runner, study\n"
        f"runner.commands = lambda *_: [[sys.executable, '-c', {saves!r}, {str(tmp_path / 'a')!r}]]\n"
        f"words = ['--run', {str(tmp_path)!r}, '--output', {str(tmp_path / 'out')!r}, '--variants=full', '--seeds=1']\n"
        "sys.exit(command.run_command(study.ABLATION, '', lambda output: output, words))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    traps = "".join(f"trap '' {one.name[3:]}; " for one in ignored)
    process = subprocess.Popen(
        ["bash", "-c", f'{traps}exec "$@"', "bash", sys.executable, "-c", driver], env=environment
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "a.begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if signal.SIGHUP in ignored:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    assert (tmp_path / "a.saved").exists()
