import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from s2s_train.exp_config import ExpConfig
from s2s_train.loggers import JsonlLogger, build_loggers
from tests.s2s_train.builders import run, write_config


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


def test_the_csv_table_is_that_of_metrics_jsonl_over_a_resumed_run(folder, corpus):
    path = write_config(folder, corpus)
    done = run(path, "a", "exp_manager.create_csv_logger=true", "trainer.max_steps=4")
    done = run(path, "a", "exp_manager.create_csv_logger=true")
    with (done.path / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    told = lines(done.metrics)
    assert len(table) == len(told)
    for row, line in zip(table, told, strict=True):
        assert {name: value for name, value in row.items() if value} == {name: str(x) for name, x in line.items()}
    assert "val_loss" in table[0]


READ_WANDB = """
import json, struct, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record

# W&B's file is a log in blocks of 32 KiB, after 7 bytes of its own: each part has a sum, a length and a kind,
# and a record is one part (1), or a first (2), more (3) and a last one (4).
data, at, record, rows, exits = Path(sys.argv[1]).read_bytes(), 7, b"", [], []
assert data[:4] == b":W&B"
while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
    record += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):
        parsed = Record.FromString(record)
        record = b""
        if parsed.WhichOneof("record_type") == "history":
            rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in parsed.history.item})
        if parsed.WhichOneof("record_type") == "exit":
            exits.append(parsed.exit.exit_code)
print(json.dumps([rows, exits]))
"""
FIT_TWICE = """
import sys
from pathlib import Path
from lightning.pytorch import Callback
from tests.s2s_train.builders import run

class BreaksAfterTwoSteps(Callback):
    def on_train_batch_end(self, trainer, *args):
        assert trainer.global_step < 2, "broken"

run(Path(sys.argv[1]), "whole", *sys.argv[2:])
run(Path(sys.argv[1]), "broken", *sys.argv[2:], callbacks=[BreaksAfterTwoSteps()])
"""


def test_each_fit_of_a_process_without_network_is_a_whole_wandb_run(folder, corpus):
    path = write_config(folder, corpus)
    offline = ["exp_manager.create_wandb_logger=true", "exp_manager.wandb_logger_kwargs={project: p, offline: true}"]
    nowhere = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "WANDB_SILENT": "true"}
    root = str(Path(__file__).parents[2])
    # a process of its own: wandb keeps a service and its state in the process
    here = {**os.environ, **nowhere, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    command = [sys.executable, "-c", FIT_TWICE, str(path), *offline]
    done = subprocess.run(command, check=False, env=here, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.stderr.rstrip().endswith("AssertionError: broken")
    for name, exit_code in (("whole", 0), ("broken", 1)):
        (written,) = (folder / "runs" / name / "wandb").glob("offline-run-*/run-*.wandb")
        command = [sys.executable, "-c", READ_WANDB, str(written)]
        read = subprocess.run(command, check=True, env=here, capture_output=True, text=True, timeout=300)
        rows, exits = json.loads(read.stdout)
        assert exits == [exit_code]
        told = [line for line in lines(folder / "runs" / name / "metrics.jsonl") if "train_loss" in line]
        assert [row["train_loss"] for row in rows if "train_loss" in row] == [line["train_loss"] for line in told]
        assert any("val_loss" in row for row in rows) == (name == "whole")
