"""The recipe's recogniser: its pieces, that it learns, and that the recipe begins with its encoder."""

import math

import pytest
import torch
from nemo.collections.asr.models import ASRModel

from recipes.talk import train_encoder
from recipes.talk.train_encoder import EncoderTrainer, Pieces, spoken
from s2s_model.duplex import DuplexS2SModel
from s2s_train.config import load_config
from tests.recipes.builders import ONE_STEP, RECIPES, TOKENS

TEXTS = ["What is eleven plus four?", "Tell me the half of eighty-four.", "It's Anna's dog, isn't it?"] * 20
SMALL = [
    "model.perception.encoder.n_layers=1", "model.perception.encoder.d_model=32",
    "model.perception.encoder.subsampling_conv_channels=16", "model.perception.spec_augment=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def pieces():
    return Pieces(spoken(text) for text in TEXTS)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_pieces_say_the_words_again(pieces, text):
    assert pieces.text(pieces.ids(text)) == spoken(text)
    assert "".join(pieces.labels()[i] for i in pieces.ids(text)).strip() == spoken(text)
    assert len(pieces.ids(text)) <= len(spoken(text).split()) + 3, "12.5 frames a second have no room for letters"


def test_what_is_not_spoken_is_left_out():
    assert spoken("Hey, <what> is\n 2 + Two-three?") == "hey what is two three"


def test_texts_without_words_are_refused():
    with pytest.raises(ValueError, match=r"the users say nothing in the data: .* data\.input_roles"):
        Pieces(["", ""])


def test_words_that_training_lacks_can_be_spelt(pieces):
    assert pieces.text(pieces.ids("jazz quiz")) == "jazz quiz"


@pytest.fixture
def trainer(in_talk, pieces):
    return EncoderTrainer(load_config(RECIPES / "talk.yaml", [*ONE_STEP[4:], *SMALL]), pieces)


def test_it_learns(trainer):
    batch = next(iter(trainer._batches))
    batch["source_texts"] = TEXTS[: len(batch["source_texts"])]
    losses = [trainer.step(batch).item() for _ in range(40)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.7 * losses[0]


def test_the_likeliest_pieces_are_written_once(trainer, pieces):
    ids, blank = pieces.ids("what is"), len(pieces.labels())
    frames = [blank, ids[0], ids[0], blank, *ids[1:], blank, ids[0], ids[0]]
    log_probs_BTV = torch.nn.functional.one_hot(torch.tensor([frames]), blank + 1).float().log()
    assert trainer.written(log_probs_BTV, torch.tensor([len(frames)])) == ["what is what"]
    assert trainer.written(log_probs_BTV, torch.tensor([len(frames) - 3])) == ["what is"]


def test_the_recipe_begins_with_its_encoder(in_talk):
    recogniser = ASRModel.restore_from(str(in_talk / "encoder.nemo"), map_location="cpu")
    overrides = [f"model.pretrained_llm={in_talk / 'llm'}", *TOKENS]
    model = DuplexS2SModel(load_config(RECIPES / "talk.yaml", overrides).model, frame_length_s=0.08)
    own = model.perception.encoder.state_dict()
    for name, value in recogniser.encoder.state_dict().items():
        assert torch.equal(own[name], value), name


@pytest.mark.parametrize(("name", "told"), [("a.nemo", "is there already"), ("a.pt", "doesn't end in .nemo")])
def test_nothing_is_trained_that_could_not_be_written(name, told, tmp_path, capsys):
    (tmp_path / "a.nemo").write_text("mine")
    assert train_encoder.main([str(RECIPES / "talk.yaml"), str(tmp_path / name)]) == 2
    assert told in capsys.readouterr().err
    assert (tmp_path / "a.nemo").read_text() == "mine"


def test_missing_data_is_told(in_talk, capsys):
    assert (
        train_encoder.main(
            [str(RECIPES / "talk.yaml"), "out.nemo", *ONE_STEP, "data.train_ds.input_cfg.0.shar_path=nowhere"]
        )
        == 2
    )
    assert "nowhere" in capsys.readouterr().err
