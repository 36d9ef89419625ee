"""A real server on loopback: users are apart from each other, and none harms another or the server."""

import asyncio
import socket
import threading
from dataclasses import replace

import aiohttp
import numpy as np
import pytest

from tests.s2s_talk.builders import PATIENT, alone, client, noise, server

LSB = 4  # 16-bit steps by which sums in another order may differ, as in tests/s2s_model/test_session.py


def check_alone(model, said, user):
    """The user got exactly what a session alone gives to the same audio."""
    assert [frame["index"] for frame in user.frames] == list(range(len(user.frames)))
    tokens, audio, text, user_text = alone(model, said, user.frames)
    assert [frame["token"]["id"] for frame in user.frames] == tokens
    assert "".join(frame["text"] for frame in user.frames) == text
    assert "".join(frame["user_text"] for frame in user.frames) == user_text
    assert np.abs(np.concatenate(user.audio).astype(int) - audio).max() <= LSB


async def talk(address, said, num_frames):
    async with client(address) as user:
        await user.send(said)
        await user.read(num_frames)
    return user


def test_the_first_message_tells_rates_and_limits(address, model):
    async def look():
        async with client(address) as user:
            return await user.ws.receive_json()

    hello = asyncio.run(look())
    assert hello["version"] == 1
    assert (hello["source_sample_rate_hz"], hello["source_samples_per_frame"]) == (16000, 1280)
    assert (hello["target_sample_rate_hz"], hello["target_samples_per_frame"]) == (22050, 1764)
    assert hello["latency_s"] == pytest.approx(model.open_session().latency_s, abs=1e-3)
    assert hello["writes_user_text"] is True
    assert hello["max_sessions"] == 2


def test_two_users_at_once_get_what_each_would_alone_and_so_does_the_next_in_a_place(address, model):
    said = [noise(24, seed) for seed in range(3)]

    async def all_three():
        async with client(address) as first:
            await first.send(said[0])
            await first.read(4)  # the second one comes while the first one talks
            second = asyncio.create_task(talk(address, said[1], 8))
            await first.read(16)
            third = asyncio.create_task(talk(address, said[2], 8))  # in the second one's place
            await asyncio.gather(first.read(24), second, third)
            return first, await second, await third

    users = asyncio.run(all_three())
    for user, audio in zip(users, said, strict=True):
        check_alone(model, audio, user)
        assert {"bos", "text"} <= {frame["token"]["kind"] for frame in user.frames}
        assert "".join(frame["text"] for frame in user.frames)
        assert "".join(frame["user_text"] for frame in user.frames)
    assert len({str([frame["token"]["id"] for frame in user.frames[:8]]) for user in users}) == 3


@pytest.mark.parametrize(
    ("message", "code", "told"),
    [
        (b"\0" * 100, 4400, "100 bytes: send 2560"),
        (np.full(1280, np.nan, np.float32).tobytes(), 4400, "5120 bytes: send 2560"),
        ("hello", 4400, "isn't JSON"),
        ('{"type": "launch"}', 4400, "no meaning"),
        (b"\0" * (1 << 17), 4400, "131072 bytes: send 2560"),
        (b"\0" * (1 << 21), 1009, None),
    ],
    ids=["short", "floats", "no JSON", "no meaning", "large", "huge"],
)
def test_rubbish_is_told_and_harms_nobody(address, model, message, code, told):
    said = noise(6)

    async def both():
        async with client(address) as good, client(address) as bad:
            await good.send(said)
            await good.read(2)
            await bad.send(noise(1))
            await bad.ws.send_bytes(message) if isinstance(message, bytes) else await bad.ws.send_str(message)
            await asyncio.gather(bad.read(), good.read(6))
            if told is None:  # who is still sending when the server closes may lose the code
                assert bad.ws.close_code in (code, aiohttp.WSCloseCode.ABNORMAL_CLOSURE)
            else:
                assert bad.ws.close_code == bad.error["code"] == code
                assert told in bad.error["text"]
        return good

    check_alone(model, said, asyncio.run(both()))


def test_a_page_of_elsewhere_and_another_host_are_refused(address):
    async def status(**headers):
        try:
            async with client(address, **headers):
                return 101
        except aiohttp.WSServerHandshakeError as refused:
            return refused.status

    async def page(**headers):
        async with aiohttp.ClientSession() as http, http.get(address, headers=headers) as answer:
            return answer.status, await answer.text()

    assert asyncio.run(status()) == 101
    assert asyncio.run(status(Origin="http://evil.example")) == 403
    assert asyncio.run(status(Origin="")) == 403
    assert asyncio.run(status(Host="evil.example", Origin="http://evil.example")) == 403
    assert asyncio.run(page(Host="evil.example"))[0] == 403
    assert asyncio.run(page())[0] == 200


def test_a_full_house_says_so_and_a_freed_place_is_taken(address):
    async def four():
        async with client(address) as first, client(address) as second, client(address) as third:
            for user in (first, second):
                assert (await user.ws.receive_json())["type"] == "hello"
            await third.read()
            assert third.ws.close_code == 4503
            assert "all 2 places are taken" in third.error["text"]
            await first.ws.send_str('{"type": "stop"}')
            await first.read()
            assert (first.ws.close_code, first.error) == (1000, {})
            async with client(address) as fourth:
                assert (await fourth.ws.receive_json())["type"] == "hello"

    asyncio.run(four())


def test_a_vanished_user_frees_the_place(address):
    async def vanish():
        async with client(address) as user, client(address):
            await user.send(noise(3))
            user.ws._response.connection.transport.abort()  # as a pulled plug on loopback

            await _until_a_place_is_free(address)

    asyncio.run(vanish())


def test_who_sends_nothing_for_a_while_is_sent_away_and_the_other_goes_on(talker, model):
    said = noise(20)

    async def stall(address):
        async with client(address) as good, client(address) as idle:
            await idle.send(noise(1))
            for number, frame in enumerate(said, 1):
                await good.send(frame[None])
                await good.read(number)
            await idle.read()
            assert idle.ws.close_code == 4408
            assert "no audio came for 0.8 s" in idle.error["text"]
            assert not all(frame["heard"] for frame in idle.frames)
        return good

    with server(talker, replace(PATIENT, idle_s=0.8)) as address:
        good = asyncio.run(stall(address))
    check_alone(model, said, good)


def test_who_sends_too_fast_is_told(talker):
    async def flood(address):
        async with client(address) as user:
            await user.send(noise(40))
            await user.read()
            assert user.ws.close_code == 4429
            assert "send a frame every 80 ms" in user.error["text"]

    with server(talker, replace(PATIENT, ahead_frames=20)) as address:
        asyncio.run(flood(address))


def test_who_does_not_read_is_sent_away_and_the_other_goes_on(talker, model):
    said = noise(16)

    limits = replace(PATIENT, unread_frames=5)
    with server(talker, limits) as address:
        good = asyncio.run(_beside_a_slow_one(address, said))
    check_alone(model, said, good)


async def _until_a_place_is_free(address):
    while True:
        async with client(address) as user:
            if (await user.ws.receive_json())["type"] == "hello":
                return
        await asyncio.sleep(0.1)


async def _beside_a_slow_one(address, said):
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    request = (
        f"GET /talk HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    raw.sendall(request.encode())
    masked_frame = b"\x82\xfe" + (2560).to_bytes(2, "big") + b"\0\0\0\0" + b"\0" * 2560
    try:
        await asyncio.to_thread(raw.sendall, 150 * masked_frame)  # it says a lot, and reads nothing
        async with client(address) as good:
            await good.send(said)
            await good.read(len(said))
            await _until_a_place_is_free(address)  # the slow one's
            return good
    finally:
        raw.close()


def test_a_conversation_ends_in_time_and_is_told_before(talker, model):
    said = noise(30)

    async def long(address):
        async with client(address) as user, client(address) as other:
            await user.send(said)
            await user.read(10)
            await other.send(said)
            await asyncio.gather(user.read(), other.read(16))
            assert user.ws.close_code == 4000
            assert "has lasted 1.6 s" in user.error["text"]
            assert len(user.audio) == len(user.frames) == 20
            assert [notice["kind"] for notice in user.notices] == ["ending"]
            assert "ends in 1 s" in user.notices[0]["text"]
        return user, other

    with server(talker, replace(PATIENT, max_duration_s=1.6, ending_notice_s=0.8)) as address:
        users = asyncio.run(long(address))
    for user in users:
        check_alone(model, said, user)


def test_when_the_server_stops_everybody_is_told(talker):
    async def connect(address, stop):
        async with client(address) as user:
            await user.send(noise(2))
            await user.read(2)
            stop.set()
            await user.read()
            assert user.ws.close_code == 1001
            assert user.error["text"] == "the server is being stopped"

    stop, failures = threading.Event(), []

    def run(address):
        try:
            asyncio.run(connect(address, stop))
        except BaseException as failure:
            failures.append(failure)
            stop.set()

    with server(talker) as address:
        user = threading.Thread(target=run, args=(address,))
        user.start()
        assert stop.wait(60)
    user.join()
    assert failures == []


def test_a_failed_tick_sends_everybody_away_and_the_next_user_is_served(talker, model, caplog):
    said = noise(3)
    whole = talker._session.push
    failing = iter([RuntimeError("the device is on fire")])

    def push(audio):  # the model's own part can't be made to fail from outside
        for failure in failing:
            raise failure
        return whole(audio)

    async def fail(address):
        async with client(address) as user:
            await user.send(noise(1))
            await user.read()
            assert user.ws.close_code == 4500
        return await talk(address, said, 3)

    with server(talker) as address:
        talker._session.push = push
        try:
            user = asyncio.run(fail(address))
        finally:
            del talker._session.push
    check_alone(model, said, user)
    assert "the device is on fire" in caplog.text
