"""A busy machine is noticed, from made files in the form of Linux's /proc."""

import os
import sys
import time

import pytest

from rlgym.bench.load import LoadWatch, pressure


def write(proc, *, avg10: float | None = 0.0, everyone: float = 0.0, stolen: float = 0.0):
    """Write the two files that are read; times in seconds of processor time."""
    tick = os.sysconf("SC_CLK_TCK")
    words = [everyone * tick, 0, 0, 10_000, 0, 0, 0, stolen * tick, 0, 0]
    (proc / "stat").write_text("cpu  " + " ".join(str(int(w)) for w in words) + "\ncpu0 1 2\n")
    if avg10 is not None:
        (proc / "pressure").mkdir(exist_ok=True)
        (proc / "pressure" / "cpu").write_text(
            f"some avg10={avg10:.2f} avg60=0.95 avg300=0.55 total=6927863\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        )


posix = pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the made files use Linux's ticks")


@posix
def test_pressure_is_read_from_the_some_line(tmp_path):
    write(tmp_path, avg10=7.25)
    assert pressure(tmp_path) == 7.25


@pytest.mark.parametrize("text", ["", "some\n", "some avg10=many\n", "nothing of the kind\n"])
def test_an_unreadable_pressure_file_is_no_pressure(tmp_path, text):
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "cpu").write_text(text)
    assert pressure(tmp_path) is None
    assert pressure(tmp_path / "absent") is None


@posix
def test_quiet_machine_is_not_busy(tmp_path):
    write(tmp_path, avg10=4.9, everyone=100.0)
    watch = LoadWatch(tmp_path, cores=2)
    assert watch.reasons_now() == []
    assert watch.stop()["busy"] is False


@posix
def test_pressure_before_the_start_marks_the_result(tmp_path):
    write(tmp_path, avg10=5.1)
    watch = LoadWatch(tmp_path, cores=2)
    write(tmp_path, avg10=0.0)
    verdict = watch.stop()
    assert verdict["busy"] is True
    assert "5.1 %" in verdict["reasons"][0]
    assert (verdict["pressure_before"], verdict["pressure_after"]) == (5.1, 0.0)


@posix
def test_own_pressure_at_the_end_does_not_mark_the_result(tmp_path):
    write(tmp_path, avg10=0.0)
    watch = LoadWatch(tmp_path, cores=2)
    write(tmp_path, avg10=60.0)
    assert watch.stop()["busy"] is False


@posix
def test_time_that_others_used_marks_the_result(tmp_path):
    write(tmp_path, everyone=100.0)
    watch = LoadWatch(tmp_path, cores=2)
    time.sleep(0.1)
    write(tmp_path, everyone=101.0)  # a second of others' work in a tenth of a second
    verdict = watch.stop()
    assert verdict["busy"] is True
    assert verdict["foreign"] > 0.5


@posix
def test_own_work_is_not_others_work(tmp_path):
    write(tmp_path, everyone=100.0)
    watch = LoadWatch(tmp_path, cores=2)
    start = time.process_time()
    while time.process_time() - start < 0.3:
        pass
    write(tmp_path, everyone=100.3)
    assert watch.stop()["foreign"] < 0.05


@posix
def test_time_that_the_hypervisor_took_marks_the_result(tmp_path):
    write(tmp_path)
    watch = LoadWatch(tmp_path, cores=2)
    time.sleep(0.05)
    write(tmp_path, stolen=1.0)
    assert "hypervisor" in watch.stop()["reasons"][0]


def test_without_proc_the_load_average_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 2.0, 1.0), raising=False)
    verdict = LoadWatch(tmp_path / "absent", cores=2).stop()
    assert verdict["busy"] is True
    assert verdict["reasons"] == ["the load average was 3.0 before the start"]
    assert LoadWatch(tmp_path / "absent", cores=8).stop()["busy"] is False


def test_a_system_that_tells_nothing_is_not_called_busy(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert LoadWatch(tmp_path / "absent", cores=2).stop()["busy"] is False


@pytest.mark.skipif(sys.platform != "linux", reason="reads this machine's own /proc")
def test_this_machine_gives_all_numbers():
    verdict = LoadWatch().stop()
    assert verdict["foreign"] is not None
    assert verdict["stolen"] is not None
