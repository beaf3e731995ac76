"""Who owns which tag: the first key that took it, until it has not been seen for 30 days.

Pure: times are monotonic seconds, records hold seconds since 1970 so that they mean the same after a restart.  What changes is
noted, for whoever writes it to a disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from p2ptunnel.defaults import COOKIE_EPOCH, TAG_SEEN_EVERY, TAG_UNSEEN_DAYS, TAGS_MAX, TAGS_OF_KEY_MAX
from p2ptunnel.types import Address, Tag

__all__ = ["TagBook", "TagRecord"]

_UNSEEN = TAG_UNSEEN_DAYS * 86_400.0


class TagRecord(Struct, frozen=True):
    """One tag that a key owns.

    Attributes:
        tag: The tag.
        key: Its owner's public key, as text.
        seen_at: When it was registered last, about; seconds since 1970.
        address: Where its owner is registered over UDP now; None: nowhere.
        epoch: Of that registration.
        ts: The highest counter that its owner has signed.
    """

    tag: Tag
    key: str
    seen_at: float
    address: Address | None = None
    epoch: int = 0
    ts: int = 0


class TagBook:
    """The tags of one server.

    Attributes:
        since_1970: Seconds since 1970 when the monotonic clock stood at 0; it matters only to records that outlive it.
    """

    def __init__(self) -> None:
        self.since_1970 = 0.0
        self._records: dict[Tag, TagRecord] = {}  # the longest unseen first
        self._of_key: Counter[str] = Counter()
        self._changes: dict[Tag, TagRecord | None] = {}

    def __len__(self) -> int:
        return len(self._records)

    def load(self, records: Iterable[TagRecord], *, away: float = 0.0) -> None:
        """Take over what is known from before, the longest unseen first.

        Args:
            records: As they were left.
            away: Seconds for which no server was there to see anybody, or by which the clock has jumped: nobody's tag is any
                nearer to being free for that.
        """
        for record in records:
            self._put(replace(record, seen_at=record.seen_at + away) if away else record)
        if not away:
            self._changes.clear()

    def record(self, tag: Tag, now: float) -> TagRecord | None:
        """Return who owns the tag, None if nobody does."""
        record = self._records.get(tag)
        if record is not None and self._is_free(record, now):
            self.free(tag)
            return None
        return record

    def floor(self, tag: Tag, now: float) -> int:
        """Return the counter that the owner's next signature must be above: 0 once no cookie lives that an old one has signed.

        So nobody who ever had it sign a high one keeps it out for longer than that.
        """
        record = self._records.get(tag)
        return 0 if record is None or now + self.since_1970 - record.seen_at > 2 * COOKIE_EPOCH else record.ts

    def is_full(self, key: str, now: float) -> bool:
        """Tell whether `key` can have no further tag."""
        while len(self._records) >= TAGS_MAX:
            oldest = next(iter(self._records.values()))
            if not self._is_free(oldest, now):
                return True
            self.free(oldest.tag)
        return self._of_key[key] >= TAGS_OF_KEY_MAX

    def register(self, record: TagRecord, now: float) -> None:
        """Note that the key of `record` holds its tag, where and since when; it may have been another's (rekey)."""
        self._put(replace(record, seen_at=now + self.since_1970))

    def keep(self, tag: Tag, now: float) -> None:
        """Note that the owner is still there."""
        record = self._records.get(tag)
        if record is not None and now + self.since_1970 - record.seen_at > TAG_SEEN_EVERY:
            self._put(replace(record, seen_at=now + self.since_1970))

    def leave(self, tag: Tag) -> None:
        """Note that the owner is registered nowhere; the tag stays its own."""
        record = self._records.get(tag)
        if record is not None and (record.address is not None or record.epoch):
            self._records[tag] = self._changes[tag] = replace(record, address=None, epoch=0)

    def free(self, tag: Tag) -> None:
        """Let anybody have the tag; one that nobody owns is free already."""
        record = self._records.pop(tag, None)
        if record is not None:
            self._discount(record.key)
            self._changes[tag] = None

    def changes(self) -> dict[Tag, TagRecord | None]:
        """Return and forget what has changed: for each tag its last record, None if it is free."""
        changes, self._changes = self._changes, {}
        return changes

    def restore(self, changes: dict[Tag, TagRecord | None]) -> None:
        """Take changes back that could not be written; newer ones count."""
        self._changes = {**changes, **self._changes}

    def _put(self, record: TagRecord) -> None:
        old = self._records.pop(record.tag, None)  # to stand last
        if old is not None:
            self._discount(old.key)
        self._of_key[record.key] += 1
        self._records[record.tag] = self._changes[record.tag] = record

    def _discount(self, key: str) -> None:
        self._of_key[key] -= 1
        if not self._of_key[key]:
            del self._of_key[key]

    def _is_free(self, record: TagRecord, now: float) -> bool:
        return now + self.since_1970 - record.seen_at > _UNSEEN
