"""A file with all the keys of NeMo's s2s_duplex.yaml trains: only its ??? and the names of models are filled in."""

import json
from pathlib import Path

import yaml

from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.cli import main
from s2s_train.run_folder import RunFolder
from tests.s2s_data.builders import dialogues, write_shar
from tests.s2s_model.builders import make_codec
from tests.s2s_model.families import make_family_weights
from tests.s2s_model.perception_builders import make_asr

CONFIG = Path(__file__).parents[2] / "apps/train/conf/s2s_duplex.yaml"


def test_nemos_keys_train_a_step_on_a_cpu_with_a_pretrained_asr_and_score_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus = write_shar(tmp_path / "corpus", dialogues("cut", 6))
    asr = make_asr(tmp_path / "asr.nemo", d_model=512)
    filled = [
        f"model.pretrained_llm={make_family_weights('llama-tinyllama', tmp_path / 'llm')}",
        f"model.pretrained_audio_codec={make_codec(tmp_path / 'codec.nemo')}",
        f"model.pretrained_asr={asr}",
        f"model.scoring_asr={asr}",
        f"data.train_ds.input_cfg.0.shar_path={corpus}",
        f"data.validation_ds.datasets.val_set_0.shar_path={corpus}",
    ]
    no_gpu = ["trainer.accelerator=cpu", "trainer.devices=1"]
    short = ["trainer.max_steps=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=2"]
    assert main(["fit", str(CONFIG), *filled, *no_gpu, *short]) == 0
    run = RunFolder(Path("s2s_results"))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    names = set().union(*lines)
    assert {"val_loss", "val_loss_val_set_0", "val_asr_bleu", "val_asr_bleu_val_set_0"} <= names
    checkpoint = AtomicCheckpointIO().load_checkpoint(run.last_checkpoint)
    assert checkpoint["global_step"] == 1
    assert not any("audio_codec" in name for name in checkpoint["state_dict"])
    assert yaml.safe_load(run.config.read_text())["model"]["perception"]["modality_adapter"]["d_model"] == 512
