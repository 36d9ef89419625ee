import json
import math
from pathlib import Path

from s2s_train.exp_config import ExpConfig
from s2s_train.loggers import JsonlLogger, build_loggers


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_is_on_disk_at_once_with_step_epoch_and_time(tmp_path):
    logger = JsonlLogger(tmp_path / "run" / "metrics.jsonl")
    logger.log_metrics({"epoch": 0, "train_loss": 0.5}, step=3)
    (line,) = lines(logger.path)
    assert list(line) == ["step", "epoch", "time_s", "train_loss"]
    assert (line["step"], line["epoch"], line["train_loss"]) == (3, 0, 0.5)


def test_values_that_are_not_finite_keep_the_file_json(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    logger.log_metrics({"nan": math.nan, "inf": -math.inf, "fine": 1.0}, step=1)
    (line,) = lines(logger.path)
    assert (line["nan"], line["inf"], line["fine"]) == (None, None, 1.0)


def test_rewind_drops_later_lines_and_one_cut_short_and_time_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps({"step": step, "epoch": 0, "time_s": 10.0 * step}) + "\n" for step in (1, 2, 3))
    path.write_text(text + '{"step": 2, "ep')
    logger = JsonlLogger(path)
    logger.rewind(2)
    assert [line["step"] for line in lines(path)] == [1, 2]
    logger.log_metrics({"x": 1.0}, step=3)
    assert 20.0 <= lines(path)[-1]["time_s"] < 30.0


def test_rewind_to_the_start_empties_what_a_run_without_a_checkpoint_left(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 0, "time_s": 1.0}\n')
    JsonlLogger(path).rewind(0)
    assert path.read_text() == ""


def test_tensorboard_writes_below_the_run(tmp_path):
    jsonl = JsonlLogger(tmp_path / "metrics.jsonl")
    tensorboard = build_loggers(ExpConfig(create_tensorboard_logger=True), jsonl)[1]
    tensorboard.log_metrics({"x": 1.0}, step=1)
    tensorboard.finalize("success")
    assert list((tmp_path / "tensorboard").glob("events.*"))
