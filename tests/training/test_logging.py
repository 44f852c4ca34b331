import io
import json
import math
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlgym.errors import UserError
from rlgym.training import console as console_module
from rlgym.training.console import IN_A_LINE, SHOWN, Console, clock, is_terminal, number
from rlgym.training.logging import NAMES, Logger, read_metrics, unknown_names


class Terminal(io.StringIO):
    def isatty(self):
        return True


def points(folder, name):
    """Return (step, value) of a scalar as TensorBoard reads them, with its handling of restarts."""
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_scalars_reach_tensorboard_and_the_json_lines(tmp_path):
    with Logger(tmp_path, 100, "off") as logger:
        returned = logger.write(
            {
                "rollout/ep_rew_mean": torch.tensor(1.5, dtype=torch.float64),
                "train/loss": torch.tensor([0.25], requires_grad=True),
                "train/n_updates": torch.tensor(3),
                "time/fps": 2000,
            },
            10,
        )
        logger.write({"rollout/ep_rew_mean": 2.5}, 20)
    assert returned["train/n_updates"] == 3.0 and next(iter(returned)) == "rollout/ep_rew_mean"
    assert points(tmp_path, "rollout/ep_rew_mean") == [(10, 1.5), (20, 2.5)]
    assert points(tmp_path, "train/loss") == [(10, 0.25)]
    first, second = read_metrics(tmp_path)
    assert first["step"] == 10 and first["train/loss"] == 0.25 and first["time/fps"] == 2000
    assert second["rollout/ep_rew_mean"] == 2.5 and second["time"] >= first["time"]


def test_numbers_that_json_lacks_are_null(tmp_path):
    with Logger(tmp_path, 100, "off") as logger:
        returned = logger.write({"train/std": math.nan, "train/loss": torch.tensor(math.inf)}, 1)
    assert math.isnan(returned["train/std"]) and returned["train/loss"] == math.inf
    line = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in line and "Infinity" not in line
    assert read_metrics(tmp_path)[0]["train/std"] is None


def test_an_unknown_name_is_an_error_that_names_the_nearest(tmp_path):
    with Logger(tmp_path, 100, "off") as logger:
        with pytest.raises(UserError, match=r"did you mean 'train/approx_kl'\?.*user/aprox_kl"):
            logger.write({"train/aprox_kl": 0.1}, 1)
        logger.write({"env/reward_upright": 1.0, "health/restarts": 2, "user/mine": 3}, 1)
    assert unknown_names([name for name in NAMES if "*" not in name]) == []
    assert unknown_names(["eval/x", "loss", "perf/learn"]) == ["eval/x", "loss"]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    with Logger(tmp_path, 100, "off") as logger:
        for step in (10, 20, 30, 40):
            logger.write({"train/loss": step}, step)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 15, "train/lo')  # the crash came in the middle of a line
    with Logger(tmp_path, 100, "off") as logger:
        logger.resume(20)
        logger.write({"train/loss": 31}, 30)
        logger.write({"train/loss": 41}, 40)
    expected = [(10, 10), (20, 20), (30, 31), (40, 41)]
    assert [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path)] == expected
    assert points(tmp_path, "train/loss") == expected


def test_a_line_that_is_torn_is_not_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\nnonsense\n[3]\n{"step": 2, "a": \xff')
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_full_disk_costs_points_and_not_the_run(tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    logger = Logger(tmp_path, 100, "plain")
    for step in range(3):
        assert logger.write({"train/loss": 1.0}, step) == {"train/loss": 1.0}
    shown = capsys.readouterr().out
    assert shown.count("scalars are being lost: No space left on device") == 1
    logger.close()


def test_closing_twice_is_allowed(tmp_path):
    logger = Logger(tmp_path, 100, "off")
    logger.close()
    logger.close()


# --- console --------------------------------------------------------------------------------------


def test_plain_lines_say_how_far_and_how_good(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console("run", 1000, "auto", stream)
    console.start(0)
    now[0] += 2
    console.update({"rollout/ep_rew_mean": 12.345, "train/loss": 1.0}, 200)
    now[0] += 1
    console.update({"rollout/ep_rew_mean": 13.0}, 300)  # too early to be shown
    now[0] += 1
    console.update({"eval/mean_reward": 500.0}, 400)  # an evaluation is always shown
    console.note("a note")
    console.update({"rollout/ep_rew_mean": 14.0}, 500)
    console.close()
    console.update({"rollout/ep_rew_mean": 15.0}, 600)
    assert stream.getvalue().splitlines() == [
        " 20% 200/1,000 steps | return 12.3 | 100 steps/s | 0:08 left",
        " 40% 400/1,000 steps | return 13 | evaluation 500 | 100 steps/s | 0:06 left",
        "a note",
        " 50% 500/1,000 steps | return 14 | evaluation 500 | 125 steps/s | 0:04 left",
    ]


def test_time_left_counts_from_where_a_run_was_resumed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console_module.time, "monotonic", lambda: now[0])
    console = Console("run", 1000, "plain", io.StringIO())
    console.start(800)
    assert console.seconds_left() is None
    now[0] = 10.0
    console.update({}, 900)
    assert console.seconds_left() == pytest.approx(10.0)


def test_the_live_panel_shows_the_scalars_and_leaves_the_terminal_whole(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("CI", raising=False)
    stream = Terminal()
    console = Console("CartPole-v1-ppo-0", 1000, "auto", stream)
    assert console.mode == "live"
    console.update({name: 0.5 for name in SHOWN}, 250)
    console.note("3 worlds [could not] be replayed")
    console.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "CartPole-v1-ppo-0" in text and "250/1,000 steps" in text
    assert all(word in text for word in SHOWN.values())
    assert "3 worlds [could not] be replayed" in text
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h"), "cursor"


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("CI", "true")])
def test_no_panel_where_it_cannot_be_redrawn(monkeypatch, name, value):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    assert is_terminal(Terminal())
    assert not is_terminal(io.StringIO())
    monkeypatch.setenv(name, value)
    assert not is_terminal(Terminal())


def test_what_is_shown_is_what_is_logged():
    assert set(SHOWN) <= set(NAMES) and set(IN_A_LINE) <= set(SHOWN)


def test_numbers_and_durations_are_short():
    values = (0, 500.0, 123.456, 0.00123456, -7.5, 1234567.8, math.nan, 3e-05, -math.inf)
    assert [number(value) for value in values] == [
        *("0", "500", "123.5", "0.00123", "-7.5", "1,234,567.8", "nan", "3e-05", "-inf")
    ]
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 90061)] == [
        *("0:00", "1:00", "59:59", "1:00:00", "25:01:01")
    ]


def test_each_name_has_its_line():
    assert all(line and json.dumps(line) for line in NAMES.values())
    sb3 = {
        *("rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/success_rate", "time/fps"),
        *("time/iterations", "time/time_elapsed", "time/total_timesteps", "train/approx_kl"),
        *("train/clip_fraction", "train/clip_range", "train/entropy_loss", "train/loss"),
        *("train/explained_variance", "train/learning_rate", "train/policy_gradient_loss"),
        *("train/value_loss", "train/std", "train/n_updates", "eval/mean_reward"),
        *("eval/mean_ep_length", "eval/success_rate"),
    }
    assert sb3 <= set(NAMES)
