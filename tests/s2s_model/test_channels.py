import torch

from s2s_model.channels import SpeechTokens, agent_turns, align_channels, delay_codes, hide_codes, make_inputs

SPEECH = SpeechTokens(codebook_size=10)
PAD, BOS, EOS = 0, 1, 2


def test_codes_run_one_frame_behind_text_with_control_codes_at_turn_ends():
    text = torch.tensor([[PAD, BOS, 7, PAD, EOS, PAD]])
    codes = torch.arange(6).view(1, 6, 1).expand(1, 6, 2)
    delayed = delay_codes(codes, text, SPEECH, BOS, EOS)
    expected = [SPEECH.delay_id, 0, SPEECH.bos_id, 2, 3, SPEECH.eos_id]
    assert delayed[0, :, 0].tolist() == expected
    assert delayed[0, :, 1].tolist() == expected


def test_labels_are_one_frame_ahead_and_padding_does_not_count():
    source = torch.zeros(2, 5, 3)
    text = torch.tensor([[0, 1, 7, 8, 2], [0, 1, 7, 0, 0]])
    codes = torch.arange(10).view(2, 5, 1)
    inputs = make_inputs(source, text, codes, torch.tensor([5, 3]))
    assert inputs.text_BT.tolist() == [[0, 1, 7, 8], [0, 1, 7, 0]]
    assert inputs.text_labels_BT.tolist() == [[1, 7, 8, 2], [1, 7, 0, 0]]
    assert inputs.valid_BT.tolist() == [[True] * 4, [True, True, False, False]]


def test_streams_of_unequal_length_are_cut_to_the_shortest():
    source, text, codes = torch.zeros(2, 7, 3), torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 8, 2)
    lens = (torch.tensor([7, 4]), torch.tensor([6, 4]), torch.tensor([8, 3]))
    source, text, codes, valid, spread = align_channels(source, text, codes, lens)
    assert source.shape[1] == text.shape[1] == codes.shape[1] == 6
    assert valid.tolist() == [6, 3]
    assert spread.tolist() == [2, 1]


def test_defect_14_control_codes_become_silence_even_where_the_first_frame_is_one():
    silence = torch.tensor([4, 5])
    codes = torch.tensor([[[SPEECH.delay_id, 3], [1, 2], [SPEECH.bos_id, SPEECH.bos_id]]])
    replaced = SPEECH.replace_control(codes, silence)
    assert replaced.tolist() == [[[4, 5], [1, 2], [4, 5]]]
    assert int(replaced.max()) < SPEECH.codebook_size


def test_turns_end_at_eos_the_next_bos_or_the_end():
    tokens = [PAD, BOS, 7, EOS, PAD, BOS, 8, BOS, 9, PAD]
    assert agent_turns(tokens, BOS, EOS) == [(1, 3), (5, 7), (7, 10)]
    assert agent_turns([PAD, EOS, PAD], BOS, EOS) == []


def test_hidden_codes_become_the_delay_code_in_whole_dialogues_and_labels_stay():
    codes = torch.zeros(200, 5, 2, dtype=torch.long)
    text = torch.zeros(200, 5, dtype=torch.long)
    inputs = make_inputs(torch.zeros(200, 5, 3), text, codes, torch.full((200,), 5))
    hidden = hide_codes(inputs, 0.5, SPEECH.delay_id)
    rows = hidden.codes_BTK.flatten(1)
    assert all(row.unique().tolist() in ([0], [SPEECH.delay_id]) for row in rows)
    assert 0.3 < (rows[:, 0] == SPEECH.delay_id).float().mean() < 0.7
    assert torch.equal(hidden.code_labels_BTK, inputs.code_labels_BTK)
    assert torch.equal(hide_codes(inputs, 0.0, SPEECH.delay_id).codes_BTK, codes[:, :-1])
