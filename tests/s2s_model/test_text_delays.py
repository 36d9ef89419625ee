import torch

from s2s_model.text_delays import delay_eos, shift_text

PAD, BOS, EOS = 0, 1, 2
IDS = (PAD, BOS, EOS)


def tensor(*rows):
    return torch.tensor(rows)


def lens(*values):
    return torch.tensor(values)


def test_a_later_text_keeps_its_order_and_padding_stays_padding():
    text = tensor([PAD, BOS, 7, EOS, PAD, PAD], [BOS, 7, EOS, PAD, PAD, PAD])
    assert shift_text(text, lens(6, 4), 1, IDS).tolist() == [
        [PAD, PAD, BOS, 7, EOS, PAD],
        [PAD, BOS, 7, EOS, PAD, PAD],
    ]


def test_a_turn_pushed_over_its_dialogues_end_ends_in_the_last_frame():
    text = tensor([PAD, BOS, 7, 8, EOS, PAD], [PAD, BOS, 7, EOS, PAD, PAD])
    assert shift_text(text, lens(6, 4), 2, IDS).tolist() == [
        [PAD, PAD, PAD, BOS, 7, EOS],
        [PAD, PAD, PAD, BOS, PAD, PAD],  # a turn of one frame can't hold its end too
    ]


def test_an_earlier_text_whose_beginning_is_pushed_out_begins_in_the_first_frame():
    text = tensor([BOS, 7, 8, EOS, PAD, BOS], [PAD, PAD, BOS, 7, EOS, PAD])
    assert shift_text(text, lens(6, 6), -1, IDS).tolist() == [
        [BOS, 8, EOS, PAD, BOS, PAD],
        [PAD, BOS, 7, EOS, PAD, PAD],
    ]


def test_no_delay_changes_nothing():
    text = tensor([PAD, BOS, 7, EOS])
    assert shift_text(text, lens(4), 0, IDS) is text
    assert delay_eos(text, lens(4), 0, IDS) is text


def test_an_end_moves_only_where_there_is_room():
    text = tensor(
        [BOS, 7, EOS, PAD, PAD, PAD],  # room
        [BOS, 7, EOS, PAD, BOS, EOS],  # the next turn begins there
        [BOS, EOS, BOS, EOS, PAD, PAD],  # past the next turn's beginning
        [BOS, 7, 8, EOS, PAD, PAD],  # over the end of its four frames
    )
    moved = delay_eos(text, lens(6, 6, 6, 4), 2, IDS)
    assert moved.tolist() == [
        [BOS, 7, PAD, PAD, EOS, PAD],
        [BOS, 7, EOS, PAD, BOS, EOS],
        [BOS, EOS, BOS, PAD, PAD, EOS],
        [BOS, 7, 8, EOS, PAD, PAD],
    ]
