"""Being told to stop: what is saved first, and what is made up for later."""

import dataclasses
import http.server
import os
import signal
import socket
import threading
import time

import pytest
from fake_run import FakeLoader, lines, make_run, numbers, stop_at

from ar_omni_jax.checkpoint import steps_in
from ar_omni_jax.training import signals
from ar_omni_jax.training.loop import FINISHED, INTERRUPTED, train
from ar_omni_jax.training.signals import PreemptionNotice, StopSignal

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers():
    """Puts the process's own handlers back."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_closed_session_saves_first(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop = StopSignal().install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.number == signal.SIGHUP and 0 <= stop.seconds < 60
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the second one ends at once


def test_nohup_stays_in_force(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignal().install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.number == 0


# ------------------------------------------------------------------------------------------- validation that is owed


def validations(workdir):
    return [(r["step"], r["nll/text"]) for r in lines(workdir, "validation")]


def test_a_signal_saves_before_a_validation_which_is_made_up_for(tmp_path):
    train(make_run(tmp_path / "whole", eval_every=8))
    stop, on_draw = stop_at(8)
    assert train(make_run(tmp_path / "parts", eval_every=8, on_draw=on_draw), stop) == INTERRUPTED
    assert steps_in(tmp_path / "parts" / "checkpoints") == [5, 8]
    assert validations(tmp_path / "parts") == []
    with pytest.raises(RuntimeError):  # makes up for it and is lost at once
        train(make_run(tmp_path / "parts", eval_every=8, crash=8))
    assert len(validations(tmp_path / "parts")) == 1
    assert train(make_run(tmp_path / "parts", eval_every=8)) == FINISHED
    assert validations(tmp_path / "parts") == validations(tmp_path / "whole")
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_a_signal_cuts_a_validation_short(tmp_path):
    train(make_run(tmp_path / "whole", eval_every=8, eval_batches=3))
    stop = StopSignal()
    run = make_run(tmp_path / "parts", eval_every=8, eval_batches=3)

    def open_loader(split, start):
        def on_draw(n):
            if split == "validation" and n == 1:
                stop.request(signal.SIGTERM)

        return FakeLoader(start, on_draw=on_draw, **({"total": 3} if split == "validation" else {}))

    assert train(dataclasses.replace(run, open_loader=open_loader), stop) == INTERRUPTED
    assert steps_in(tmp_path / "parts" / "checkpoints")[-1] == 8
    assert train(make_run(tmp_path / "parts", eval_every=8, eval_batches=3)) == FINISHED
    assert validations(tmp_path / "parts") == validations(tmp_path / "whole")


def test_a_signal_at_the_last_step_owes_its_validation_too(tmp_path):
    train(make_run(tmp_path / "whole", eval_every=20))
    stop, run = StopSignal(), make_run(tmp_path / "parts", eval_every=20)
    take_step = run.trainer.train_step

    def train_step(state, batch):
        if int(batch["number"]) == 19:
            stop.request(signal.SIGTERM)
        return take_step(state, batch)

    run.trainer.train_step = train_step
    assert train(run, stop) == INTERRUPTED
    assert steps_in(tmp_path / "parts" / "checkpoints")[-1] == 20 and validations(tmp_path / "parts") == []
    assert train(make_run(tmp_path / "parts", eval_every=20)) == FINISHED
    assert validations(tmp_path / "parts") == validations(tmp_path / "whole")


def test_a_signal_before_the_first_step_takes_none(tmp_path, capsys):
    stop = StopSignal()
    stop.request(signal.SIGTERM)
    assert train(make_run(tmp_path), stop) == INTERRUPTED
    assert lines(tmp_path) == [] and steps_in(tmp_path / "checkpoints") == []
    assert train(make_run(tmp_path)) == FINISHED


# ------------------------------------------------------------------------------------------------------ preemption


@pytest.fixture
def page():
    """A page like Compute Engine's: (address, answers that are still to come; the last one stays)."""
    answers, headers = ["FALSE", "FALSE", "TRUE"], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            headers.append(self.headers.get("Metadata-Flavor"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write((answers.pop(0) if len(answers) > 1 else answers[0]).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/preempted", answers, headers
    server.shutdown()
    server.server_close()


def test_a_preemption_notice_saves_in_time(tmp_path, page, capsys, monkeypatch):
    address, _, headers = page
    monkeypatch.setattr(signals, "NOTICE_EVERY_S", 0.02)
    slow = lambda n: time.sleep(0.02)  # noqa: E731
    stop = StopSignal()
    run = make_run(tmp_path, on_draw=slow, steps=100_000, checkpoint_every=100_000)
    run = dataclasses.replace(run, preemption_notice=address)
    assert train(run, stop) == INTERRUPTED
    assert stop.number == signal.SIGTERM
    told = capsys.readouterr().out
    assert f"preemption notice of {address}: finishing this step and saving" in told
    assert f"saved step {steps_in(tmp_path / 'checkpoints')[-1]}" in told and "s after the signal" in told
    assert set(headers) == {"Google"}


def test_an_answer_that_is_none_is_told_and_asked_again(capsys):
    """What stands between may answer anything, and the notice may come a moment later."""
    server = socket.create_server(("127.0.0.1", 0))
    answers = [b"what?\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nTR", b"HTTP/1.1 200 OK\r\n\r\nTRUE"]

    def answer():
        for text in answers:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(text)

    threading.Thread(target=answer, daemon=True).start()
    stop = StopSignal()
    with server, PreemptionNotice(f"http://127.0.0.1:{server.getsockname()[1]}/", stop, every_s=0.01):
        end = time.monotonic() + 30
        while not stop.number and time.monotonic() < end:
            time.sleep(0.01)
    assert stop.number == signal.SIGTERM
    assert capsys.readouterr().out.count("cannot be asked for a preemption notice") == 1


def test_no_notice_no_stop(page):
    address, answers, headers = page
    answers[:] = ["FALSE"]
    stop = StopSignal()
    with PreemptionNotice(address, stop, every_s=0.01):
        while len(headers) < 5:
            time.sleep(0.01)
    assert stop.number == 0


def test_a_page_that_is_away_is_told_once_and_asked_on(page, capsys):
    stop = StopSignal()
    with PreemptionNotice("http://127.0.0.1:9/nothing", stop, every_s=0.01):
        time.sleep(0.3)
    assert stop.number == 0
    assert capsys.readouterr().out.count("cannot be asked for a preemption notice") == 1
