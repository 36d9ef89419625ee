"""What a validation shows on the screen."""

from s2s_train.headline import headline, headline_of_all

METRICS = {
    "val_loss": 1.5,
    "val_loss_a": 1.0,
    "val_loss_b_c": 2.0,
    "val_asr_bleu": 30.0,
    "val_asr_bleu_a": 40.25,
    "ceiling_asr_bleu_a": 80.0,
    "val_answer_accuracy_a": 25.0,
    "val_code_accuracy_a_k0": 3.0,
    "train_loss": 7.0,
}


def test_a_row_for_each_data_set_and_a_column_for_what_is_known():
    titles, rows = headline(METRICS)
    assert titles == ["loss", "ASR-BLEU", "ceiling", "answers %"]
    assert rows == {"a": ["1", "40.25", "80", "25"], "b_c": ["2", "", "", ""], "all": ["1.5", "30", "", ""]}


def test_one_line_over_all_data_sets():
    assert headline_of_all(METRICS) == "loss 1.5 | ASR-BLEU 30"
    assert headline_of_all({"train_loss": 7.0}) == ""


def test_of_a_test():
    assert headline({"test_loss": 1.0, "test_loss_x": 2.0, "val_loss_y": 3.0}, "test")[1] == {"x": ["2"], "all": ["1"]}
