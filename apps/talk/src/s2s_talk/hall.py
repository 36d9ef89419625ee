"""Where users come and go: their places, and the clock that lets the model hear them."""

import asyncio
import logging
import time
from concurrent.futures import Executor
from typing import Any

from s2s_talk.guest import Guest
from s2s_talk.inbox import Taken
from s2s_talk.pace import Pace
from s2s_talk.protocol import Code, Limits, Refused
from s2s_talk.talker import Answer, Talker

log = logging.getLogger(__name__)


class Hall:
    """The places of a `Talker` and the clock that ticks while anybody talks.

    A tick runs on `worker`, an executor of one thread; the event loop goes on meanwhile. The clock begins half a frame
    behind the first frame that comes, so that a lone user's next frames may be early or late by as much. A late clock
    hurries as long as everybody has audio waiting.
    """

    def __init__(self, talker: Talker, limits: Limits, worker: Executor) -> None:
        self.format, self.limits = talker.format, limits
        self._talker, self._worker = talker, worker
        self._guests: dict[int, Guest] = {}  # by place
        self._came = asyncio.Event()  # somebody talks
        self._pace = Pace(talker.format.frame_length_s)
        self._over_at = min(talker.max_frames, int(limits.max_duration_s / self.format.frame_length_s + 1e-6))
        self._notice_at = self._over_at - round(limits.ending_notice_s / self.format.frame_length_s)

    def enter(self) -> Guest:
        """Give a new user a place.

        Raises:
            Refused: all are taken.
        """
        for place in range(self.limits.max_sessions):
            if place not in self._guests:
                guest = self._guests[place] = Guest(self.format, self.limits, time.monotonic())
                return guest
        raise Refused(
            Code.FULL,
            f"all {self.limits.max_sessions} places are taken: try again later, or start the server with a larger "
            "--max-sessions",
        )

    def leave(self, guest: Guest) -> None:
        """Free the place of a user who has it no more."""
        self._guests = {place: other for place, other in self._guests.items() if other is not guest}

    def send_all_away(self, why: Refused) -> None:
        """End all conversations at once."""
        for guest in self._guests.values():
            guest.end(why)

    def heard_from(self) -> None:
        """Start the clock: somebody's audio has come."""
        self._came.set()

    async def run(self) -> None:
        """Tick for ever."""
        while True:
            await self._came.wait()
            due_s = time.monotonic() + self.format.frame_length_s / 2
            while self._talking():
                await asyncio.sleep(max(due_s - time.monotonic(), 0))
                now_s = time.monotonic()
                if not all(len(guest.inbox) for guest in self._talking().values()):
                    due_s = max(due_s, now_s)  # no use to hurry
                await self._tick(max(now_s - due_s, 0))
                due_s += self.format.frame_length_s
            self._came.clear()

    def _talking(self) -> dict[int, Guest]:
        return {place: guest for place, guest in self._guests.items() if guest.is_talking}

    async def _tick(self, late_s: float) -> None:
        talking = self._talking()
        taken = {place: guest.inbox.take() for place, guest in talking.items()}
        began_s = time.monotonic()
        answers = await self._hear(talking, taken)
        now_s = time.monotonic()
        self._pace.took(now_s - began_s)
        warning = self._pace.warning(now_s, len(talking))
        times = {"tick_ms": _ms(now_s - began_s), "behind_ms": _ms(late_s)}
        for place, answer in answers.items():
            if self._guests.get(place) is talking[place]:  # else it left meanwhile
                frame = taken[place].frame
                waited_ms = None if frame is None else _ms(now_s - frame.came_at_s)
                self._deliver(talking[place], answer, taken[place], {**times, "waited_ms": waited_ms}, warning)

    async def _hear(self, talking: dict[int, Guest], taken: dict[int, Taken]) -> dict[int, Answer]:
        frames = {place: one.frame.audio_S if one.frame else None for place, one in taken.items()}
        begins = frozenset(place for place, guest in talking.items() if not guest.num_heard)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._worker, self._talker.tick, frames, begins)
        except Exception:
            log.exception("a tick failed; everybody who talked is sent away")
            for guest in talking.values():
                guest.end(Refused(Code.DEFECT, "the server failed, its log tells how: connect again"))
                self.leave(guest)
            await loop.run_in_executor(self._worker, self._talker.clear)
            return {}

    def _deliver(
        self, guest: Guest, answer: Answer, taken: Taken, times: dict[str, Any], warning: dict[str, Any] | None
    ) -> None:
        guest.answer(answer, taken, times)
        if warning is not None:
            guest.tell(warning)
        if guest.num_heard == self._notice_at:
            left_s = (self._over_at - guest.num_heard) * self.format.frame_length_s
            text = f"This conversation ends in {left_s:.0f} s: it may last {self.limits.max_duration_s:g} s."
            guest.tell({"type": "notice", "kind": "ending", "left_s": round(left_s, 2), "text": text})
        if guest.num_heard == self._over_at:
            guest.end_after_answers(
                Refused(Code.OVER, f"the conversation has lasted {self.limits.max_duration_s:g} s: connect again")
            )
            self.leave(guest)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
