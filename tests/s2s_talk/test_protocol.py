"""What may be said to the server, how late and early frames are taken, and who may reach it."""

import asyncio

import numpy as np
import pytest

from s2s_talk import guest
from s2s_talk.addresses import check_host, is_loopback, why_not_host, why_not_origin
from s2s_talk.guest import Guest
from s2s_talk.inbox import Inbox
from s2s_talk.pace import NUM_TICKS, TOLD_EVERY_S, Pace
from s2s_talk.protocol import Code, Format, Limits, Refused, bytes_of_frame, check_stop, frame_of_bytes

FORM = Format(16000, 1280, 22050, 1764, 0.08)
FRAME = np.zeros(1280, np.float32)


def test_audio_goes_there_and_back_and_what_is_too_loud_is_clipped():
    audio = np.linspace(-1, 32767 / 32768, 1280, dtype=np.float32)
    data = bytes_of_frame(audio)
    assert np.abs(frame_of_bytes(data, FORM) - audio).max() <= 0.5 / 32768
    assert bytes_of_frame(np.array([-9, 9, np.inf], np.float32)) == np.array([-32768, 32767, 32767], "<i2").tobytes()


@pytest.mark.parametrize("size", [0, 1, 2559, 2561, 5120])
def test_a_message_of_another_size_is_no_frame(size):
    with pytest.raises(Refused, match=rf"has {size} bytes: send 2560.*16-bit samples at 16000 Hz") as refused:
        frame_of_bytes(b"\0" * size, FORM)
    assert refused.value.code == Code.RUBBISH


@pytest.mark.parametrize("text", ["", "stop", "[]", "{}", "null", '{"type": "start"}', "[" * 200, "x" * 201])
def test_a_text_message_stops_or_is_refused(text):
    check_stop('{"type": "stop"}')
    with pytest.raises(Refused) as refused:
        check_stop(text)
    assert refused.value.code == Code.RUBBISH


def inbox(**limits):
    return Inbox(FORM, Limits(**limits), now_s=0.0)


def test_a_late_frame_is_replaced_by_silence_and_a_spare_one_takes_up_the_next_delay():
    box = inbox()
    assert box.take() == (None, 0)
    box.put(FRAME, 0.08)
    box.put(FRAME, 0.16)
    assert [box.take().frame is None for _ in range(3)] == [False, False, True]


def test_what_waits_for_long_is_skipped_down_to_the_spare_frames_and_counted():
    box = inbox(spare_frames=2, patience_frames=5)
    for _ in range(7):
        box.put(FRAME, 0.0)
    skipped = []
    for tick in range(12):  # a frame comes with each tick
        skipped.append(box.take().skipped)
        box.put(FRAME, 0.08 * tick)
    assert skipped == [0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0]
    assert len(box) == 3  # two spare ones, and the one that has just come


def test_more_than_may_wait_is_skipped_at_once():
    box = inbox(waiting_frames=3)
    for number in range(10):
        box.put(np.full(1280, number, np.float32), 0.0)
    taken = box.take()
    assert (taken.skipped, taken.frame.audio_S[0], len(box)) == (6, 6, 3)


def test_audio_ahead_of_time_is_refused_and_what_a_pause_held_back_is_not():
    box = inbox(ahead_frames=5)
    for _ in range(30):
        box.put(FRAME, 2.5)
    box = inbox(ahead_frames=5)
    for _ in range(5):
        box.put(FRAME, 0.0)
    with pytest.raises(Refused, match=r"0\.4 s ahead of time: send a frame every 80 ms") as refused:
        box.put(FRAME, 0.0)
    assert refused.value.code == Code.TOO_FAST


def test_a_server_that_is_too_slow_says_so_now_and_then():
    pace = Pace(0.08)
    for _ in range(NUM_TICKS):
        pace.took(0.079)
    assert pace.warning(0.0, 1) is None
    for _ in range(NUM_TICKS):
        pace.took(0.1)
    assert "needs 100 ms for 80 ms of audio, with 3 talking" in pace.warning(0.0, 3)["text"]
    assert pace.warning(1.0, 3) is None
    assert pace.warning(TOLD_EVERY_S, 3) is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_is_served_without_asking(host):
    check_host(host, allow_remote=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "8.8.8.8", "no.such.host.invalid"])
def test_any_other_address_has_to_be_asked_for(host):
    assert not is_loopback(host)
    with pytest.raises(ValueError, match=rf"--host {host}.*no.* password.*encrypts nothing.*--allow-remote"):
        check_host(host, allow_remote=False)
    check_host(host, allow_remote=True)


@pytest.mark.parametrize("host", [None, "", "evil.example:8765", "192.168.1.2:8765", "localhost.evil.example", "a b"])
def test_a_name_that_was_made_to_point_here_is_refused(host):
    assert why_not_host(host, allow_remote=False)
    for own in ("localhost:8765", "127.0.0.1:8765", "[::1]:8765", "LOCALHOST"):
        assert why_not_host(own, allow_remote=False) is None
    assert why_not_host("talk.example", allow_remote=True) is None


@pytest.mark.parametrize(
    "origin", [None, "", "null", "http://evil.example", "http://localhost:9999", "file://localhost:8765", "//"]
)
def test_a_page_of_elsewhere_may_not_use_the_socket(origin):
    assert why_not_origin(origin, "localhost:8765")
    assert why_not_origin("http://localhost:8765", "localhost:8765") is None
    assert why_not_origin("https://talk.example", "talk.example") is None


def test_a_conversation_that_is_over_ends_though_its_answers_are_not_read(monkeypatch):
    monkeypatch.setattr(guest, "LAST_ANSWERS_S", 0.01)
    why = Refused(Code.OVER, "it has lasted long enough")

    async def nobody_reads() -> Refused:
        one = Guest(FORM, Limits(), 0.0)
        one.tell({"type": "notice"})
        one.end_after_answers(why)
        return await one.ended

    assert asyncio.run(nobody_reads()) is why
