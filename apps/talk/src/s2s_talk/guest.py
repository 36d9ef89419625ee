"""One user who talks: what comes in from them, what is on its way out, and how it ends."""

import asyncio
import json
from typing import Any

from s2s_talk.inbox import Inbox, Taken
from s2s_talk.protocol import Code, Format, Limits, Refused, bytes_of_frame
from s2s_talk.talker import Answer

LAST_ANSWERS_S = 5.0  # for what is unread when a conversation is as long as it may be


class Guest:
    """A conversation as the hall sees it; the socket's side is visit.py.

    Attributes:
        inbox: frames that came and weren't heard yet.
        num_heard: frames that the model heard of this user, silence in place of late ones included.
        ended: holds why the hall ends the conversation at once.
    """

    def __init__(self, form: Format, limits: Limits, now_s: float) -> None:
        self.inbox = Inbox(form, limits, now_s)
        self.num_heard = 0
        self.ended: asyncio.Future[Refused] = asyncio.get_running_loop().create_future()
        self._outbox: asyncio.Queue[str | bytes | Refused] = asyncio.Queue()
        self._most = 2 * limits.unread_frames  # a frame is two messages

    @property
    def is_talking(self) -> bool:
        """Whether the first frame has come; until then the user costs nothing."""
        return self.num_heard > 0 or len(self.inbox) > 0

    def end(self, why: Refused) -> None:
        """End the conversation at once."""
        if not self.ended.done():
            self.ended.set_result(why)

    def end_after_answers(self, why: Refused) -> None:
        """End the conversation when all answers are sent, or a little later if they aren't read."""
        self._outbox.put_nowait(why)
        asyncio.get_running_loop().call_later(LAST_ANSWERS_S, self.end, why)

    async def next_message(self) -> str | bytes:
        """Return what is to be sent next, once there is something.

        Raises:
            Refused: the conversation has come to its end.
        """
        message = await self._outbox.get()
        if isinstance(message, Refused):
            raise message
        return message

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message that isn't audio; whoever doesn't read is sent away."""
        self._outbox.put_nowait(json.dumps(message))
        if self._outbox.qsize() > self._most:
            self.end(
                Refused(Code.SLOW, f"{self._outbox.qsize() // 2} answers weren't read: is the connection too slow?")
            )

    def answer(self, answer: Answer, taken: Taken, times: dict[str, float]) -> None:
        """Send what the model said to a frame: what it is, then its audio."""
        self.tell(
            {
                "type": "frame",
                "index": self.num_heard,
                "heard": taken.frame is not None,
                "skipped": taken.skipped,
                "text": answer.text,
                "user_text": answer.user_text,
                "token": {"id": answer.token_id, "kind": answer.token_kind, "text": answer.token_text},
                "speech": answer.speech_kind,
                "user_level_db": answer.user_level_db,
                "agent_level_db": answer.agent_level_db,
                **times,
            }
        )
        self._outbox.put_nowait(bytes_of_frame(answer.audio_R))
        self.num_heard += 1
