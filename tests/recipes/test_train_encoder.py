"""The recipe's recogniser: its pieces, that it learns, and that the recipe begins with its encoder."""

import math
import tarfile
from types import SimpleNamespace

import pytest
import torch
from nemo.collections.asr.models import ASRModel

from recipes.talk import train_encoder
from recipes.talk.train_encoder import (
    EncoderTrainer,
    Pieces,
    centre_features,
    dialogue_batches,
    main,
    spoken,
    spread_evenly,
    turn_batches,
)
from s2s_data.batch import Turn
from s2s_model.duplex import DuplexS2SModel
from s2s_train.config import load_config
from tests.recipes.builders import ONE_STEP, RECIPES, TOKENS

TEXTS = ["What is eleven plus four?", "Tell me the half of eighty-four.", "It's Anna's dog, isn't it?"] * 20
RATE = 100
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
    assert spoken("Hey, <what> is\n 42 + Two-three?") == "hey what is forty two two three"


def test_texts_without_words_are_refused():
    with pytest.raises(ValueError, match=r"the users say nothing in the data: .* data\.input_roles"):
        Pieces(["", ""])


def test_words_that_training_lacks_can_be_spelt(pieces):
    assert pieces.text(pieces.ids("jazz quiz")) == "jazz quiz"


@pytest.fixture
def trainer(in_talk, pieces):
    return EncoderTrainer(load_config(RECIPES / "talk.yaml", [*ONE_STEP[4:], *SMALL]), pieces)


@pytest.mark.parametrize("evenly", [False, True])
def test_it_learns(trainer, evenly):
    turns = next(turn_batches(trainer._batches, 16000, 8))
    turns = turns._replace(texts=TEXTS[: len(turns.texts)])
    losses = [trainer.step(turns, evenly=evenly).item() for _ in range(40)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.7 * losses[0]


def dialogue(*turns):
    """A batch of one dialogue of 20 s, whose samples are their own number."""
    audio_BS = torch.arange(20 * RATE, dtype=torch.float32)[None]
    return {"source_audio": audio_BS, "source_audio_lens": torch.tensor([19 * RATE]), "turns": [list(turns)]}


def test_turns_of_like_length_come_together(monkeypatch):
    monkeypatch.setattr(train_encoder, "BEFORE_S", 0)
    short, long, late = (
        Turn("user", 2.0, 1.0, "What?"),
        Turn("user", 8.0, 5.0, "And then?"),
        Turn("user", 18.0, 1.2, "Oh"),
    )
    others = Turn("agent", 3.0, 1.0, "So."), Turn("user", 5.0, 1.0, "...")
    batches = list(turn_batches([dialogue(short, long, late, *others)] * 2, RATE, 8))
    assert [batch.texts for batch in batches] == [["And then?"], ["And then?"], ["What?", "Oh"] * 2]
    assert [batch.audio_BS.shape for batch in batches] == [(1, 6 * RATE), (1, 6 * RATE), (4, 2 * RATE)]
    assert batches[2].lens_B.tolist() == [1.5 * RATE, RATE] * 2, "up to the dialogue's end at most"
    assert batches[2].audio_BS[0, : 3 * RATE // 2].tolist() == [*range(2 * RATE, round(3.5 * RATE))]
    assert not batches[2].audio_BS[1, RATE:].any()


def test_a_turn_is_heard_with_some_of_what_was_before():
    batches = list(
        turn_batches([dialogue(Turn("user", 0.5, 1.0, "What?"), Turn("user", 9.0, 1.0, "What?"))] * 40, RATE, 80)
    )
    heard = [lens for batch in batches for lens in batch.lens_B.tolist()]
    assert min(heard) >= 1.5 * RATE
    assert max(heard) <= 3.0 * RATE
    assert len(set(heard)) > 20
    for batch in batches:
        for (start_s, end_s), num_samples in zip(batch.spans_s, batch.lens_B.tolist(), strict=True):
            assert 0 <= start_s <= 1.51
            assert end_s == pytest.approx(start_s + 1)
            assert num_samples / RATE == pytest.approx(end_s + 0.5, abs=0.02)


def test_dialogues_are_heard_whole():
    short = dialogue() | {"source_audio": torch.ones(1, 150), "source_audio_lens": torch.tensor([150])}
    (heard,) = dialogue_batches([short | {"source_texts": ["What? And?"]}], RATE)
    assert heard.audio_BS.tolist() == [[1.0] * 150 + [0.0] * 50]
    assert (heard.lens_B.tolist(), heard.texts) == ([150], ["What? And?"])


def test_it_learns_from_turns_then_from_dialogues(trainer, monkeypatch):
    steps = []
    clock = iter(x / 4 for x in range(1000))
    monkeypatch.setattr(train_encoder, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(train_encoder, "LOG_EVERY_S", 1000)

    def step(heard, *, evenly):
        steps.append((bool(heard.spans_s), evenly))
        return torch.zeros(())

    monkeypatch.setattr(trainer, "step", step)
    trainer.train(10, 8)
    assert [steps.count(kind) for kind in ((True, True), (True, False), (False, False))] == [6, 16, 16]
    assert steps == sorted(steps, reverse=True)


def test_pieces_are_spread_over_their_turn():
    assert list(spread_evenly([7, 8], (0.8, 1.2), 0.08)) == [(13, 7), (14, 7), (15, 7), (16, 8), (17, 8)]
    assert list(spread_evenly([1, 2, 3], (0.0, 0.16), 0.08)) == [(3, 1), (4, 2)], "as many as there are frames"
    assert not list(spread_evenly([], (0.0, 1.0), 0.08))


def test_features_of_speech_begin_centred():
    conv = torch.nn.Conv2d(1, 4, 3)
    encoder = torch.nn.Module()
    encoder.pre_encode = torch.nn.Sequential(conv)
    before = conv(torch.ones(1, 1, 5, 5)) - conv.bias[:, None, None]
    centre_features(encoder)
    assert torch.allclose(conv(torch.full((1, 1, 5, 5), -11.0)), torch.zeros(4, 3, 3), atol=1e-5)
    assert torch.allclose(conv(torch.full((1, 1, 5, 5), -7.0)), before, atol=1e-5)


def test_the_likeliest_pieces_are_written_once(trainer, pieces):
    ids, blank = pieces.ids("what is"), len(pieces.labels())
    frames = [blank, ids[0], ids[0], blank, *ids[1:], blank, ids[0], ids[0]]
    log_probs_BTV = torch.nn.functional.one_hot(torch.tensor([frames]), blank + 1).float().log()
    assert trainer.written(log_probs_BTV, torch.tensor([len(frames)])) == ["what is what"]
    assert trainer.written(log_probs_BTV, torch.tensor([len(frames) - 3])) == ["what is"]


@pytest.mark.parametrize("folder", ["", RECIPES], ids=["made here", "published"])
def test_the_recipe_begins_with_its_encoder(folder, in_talk):
    path = str(in_talk / folder / "encoder.nemo")
    recogniser = ASRModel.restore_from(path, map_location="cpu")
    overrides = [f"model.pretrained_llm={in_talk / 'llm'}", f"model.pretrained_asr={path}", *TOKENS]
    model = DuplexS2SModel(load_config(RECIPES / "talk.yaml", overrides).model, frame_length_s=0.08)
    own = model.perception.encoder.state_dict()
    for name, value in recogniser.encoder.state_dict().items():
        assert torch.equal(own[name], value), name


def test_it_is_saved_in_half_the_space(trainer, tmp_path):
    own = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.round_weights()
    trainer.save(tmp_path / "half.nemo")
    parameters = dict(trainer.model.named_parameters())
    with tarfile.open(tmp_path / "half.nemo") as archive:
        name = next(name for name in archive.getnames() if name.endswith("model_weights.ckpt"))
        saved = torch.load(archive.extractfile(name))
    for name, value in saved.items():
        wanted = own[name].bfloat16() if name in parameters else own[name]
        assert value.dtype == wanted.dtype, name
        assert torch.equal(value, wanted), name
    assert any(name not in parameters for name in saved)


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


@pytest.mark.parametrize(("argument", "told"), [("--minutes", "give it some time"), ("--batch-s", "give 2 or more")])
def test_no_time_and_no_batch_are_refused(argument, told, capsys):
    with pytest.raises(SystemExit) as error:
        train_encoder.main([str(RECIPES / "talk.yaml"), "out.nemo", argument, "0"])
    assert error.value.code == 2
    assert told in capsys.readouterr().err


def test_nothing_is_heard_where_text_is_alone():
    said = dialogue(Turn("user", 0.5, 1.0, "What?")) | {"text_only": torch.tensor([True]), "source_texts": ["What?"]}
    assert not list(turn_batches([said] * 9, RATE, 8))
    assert not list(dialogue_batches([said], RATE))
    both = {
        "source_audio": torch.ones(2, 200), "source_audio_lens": torch.tensor([150, 100]),
        "source_texts": ["alone", "heard"], "text_only": torch.tensor([True, False]),
    }  # fmt: skip
    (heard,) = dialogue_batches([both], RATE)
    assert (heard.lens_B.tolist(), heard.texts, heard.audio_BS.shape) == ([100], ["heard"], (1, 200))


def test_data_of_text_alone_are_left_out(in_talk):
    cfg = load_config(RECIPES / "talk.yaml")
    train_encoder.leave_out_text(cfg)
    assert [entry["shar_path"] for entry in cfg.data.train_ds.input_cfg] == [f"{in_talk}/corpus/train"]
    cfg.data.train_ds.input_cfg = [{"type": "lhotse_shar", "shar_path": f"{in_talk}/text"}]
    with pytest.raises(ValueError, match=r"text alone \(text_only\): an encoder learns"):
        train_encoder.leave_out_text(cfg)


def test_it_goes_on_from_an_encoder_that_listens(in_talk, tmp_path, capsys):
    from nemo.collections.asr.models import EncDecCTCModel

    start, out = in_talk / "encoder.nemo", tmp_path / "more.nemo"
    assert main([str(RECIPES / "talk.yaml"), str(out), "--start", str(start), *ONE_STEP]) == 0
    before, after, anew = (
        torch.cat([weight.float().flatten() for weight in EncDecCTCModel.restore_from(str(path)).encoder.parameters()])
        for path in (start, out, in_talk / "encoder.nemo")
    )
    assert 0 < (after - before).abs().max() < 0.1, "a step away from where it began"
    assert torch.equal(before, anew)
    out.unlink()
    others = [str(RECIPES / "talk.yaml"), str(out), "--start", str(start), *ONE_STEP, *SMALL]
    assert main(others) == 2
    assert "encoder.nemo: its encoder isn't that of model.perception: " in capsys.readouterr().err
    assert main([*others[:3], "none.nemo", *ONE_STEP]) == 2
    assert "none.nemo: no such file; recipe:encoder makes one" in capsys.readouterr().err
