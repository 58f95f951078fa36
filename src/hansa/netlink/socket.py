"""One netlink socket: requests, dumps and nfnetlink batches; the only module here that touches the kernel.

Evidence: libraries section 5, points learnt: one `sendto` per batch, SO_SNDBUFFORCE, errors by sequence number.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import select
import socket
import struct
from collections.abc import Sequence

from hansa.errors import DataplaneError
from hansa.netlink import codec

NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_EXT_ACK = 11  # errors carry the kernel's words
NETLINK_CAP_ACK = 10  # errors do not repeat the request
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_DROP_MEMBERSHIP = 2

# A batch is one datagram; 100,000 map elements are 6 MB, and the kernel accounts about twice the payload.
SEND_BUFFER_BYTES = 64 << 20
# Every failing message of a batch is answered with one datagram.
RECEIVE_BUFFER_BYTES = 8 << 20
DATAGRAM_BYTES = 1 << 17  # the kernel's dumps come in pieces of at most 32 KiB; room for error messages too
DUMP_ATTEMPTS = 5  # a dump that others disturb is begun again this often
ANSWER_TIMEOUT_S = 60  # the kernel answers at once, or, with a huge batch, after it has worked through it


class NetlinkError(DataplaneError):
    """The kernel refused. `answers`: every refusal with its sequence number, in the order in which they came."""

    def __init__(self, answers: Sequence[codec.Answer]) -> None:
        self.answers = tuple(answers)
        super().__init__("; ".join(str(one) for one in answers))

    @property
    def code(self) -> int:
        """The errno of the first refusal."""
        return self.answers[0].code


class NetfilterSocket:
    """A socket to the kernel's netfilter subsystems, bound to the network namespace of the calling thread.

    Raises DataplaneError if the socket cannot be made or the kernel does not answer, NetlinkError if it refuses.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        except (AttributeError, OSError) as error:
            raise DataplaneError(f"no netfilter netlink socket on this host: {error}") from error
        # The kernel's own timeout, not Python's: that one would make the non-blocking reads below wait as well.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", ANSWER_TIMEOUT_S, 0))
        self._socket.bind((0, 0))
        for option in (NETLINK_EXT_ACK, NETLINK_CAP_ACK):
            self._socket.setsockopt(SOL_NETLINK, option, 1)
        self._raise_buffer(getattr(socket, "SO_SNDBUFFORCE", 32), socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._raise_buffer(getattr(socket, "SO_RCVBUFFORCE", 33), socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._sequence = itertools.count(1)

    def close(self) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """The number by which the kernel knows this socket; messages that it caused carry it."""
        port: int = self._socket.getsockname()[0]
        return port

    def join(self, group: int) -> None:
        """Receive the notices of a multicast group from now on."""
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            raise DataplaneError(f"the kernel lets nobody listen to group {group}: {error}") from error

    def leave(self, group: int) -> None:
        self._socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, group)

    def notices(self) -> list[codec.Message] | None:
        """What has arrived from groups, without waiting; None if some was lost for lack of room."""
        try:
            return [one for data in self._drain() for one in codec.messages(data)]
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise DataplaneError(f"no notices from the kernel: {error}") from error

    def wait(self, timeout_s: float) -> None:
        """Return when something has arrived, or the time is over."""
        select.select([self._socket], [], [], max(0.0, timeout_s))

    def next_sequence(self) -> int:
        """A sequence number that no other request of this socket has."""
        return next(self._sequence) & 0xFFFFFFFF

    def skip_to(self, sequence: int) -> None:
        """The numbers below are taken by a batch."""
        self._sequence = itertools.count(sequence)

    def request(self, kind: int, flags: int, payload: bytes) -> list[codec.Message]:
        """Send one request and collect the messages that answer it, before its acknowledgement."""
        sequence = self.next_sequence()
        self._send(codec.message(kind, flags | codec.NLM_F_REQUEST | codec.NLM_F_ACK, sequence, payload))
        found = self._collect(sequence)
        if found.interrupted:
            raise NetlinkError([codec.Answer(sequence, errno.EINTR, "interrupted by another writer")])
        return found.messages

    def each_answer_ends(self, kind: int, payload: bytes, endings: Sequence[bytes]) -> bool:
        """Send a request that is answered by one message for each of `endings`, in order; whether each ends as it says.

        False also if the kernel says that something asked for is not there. Fast: an answer is not taken apart.
        """
        sequence = self.next_sequence()
        self._send(codec.message(kind, codec.NLM_F_REQUEST | codec.NLM_F_ACK, sequence, payload))
        header = codec.NLMSG_HEADER.pack(0, codec.NLMSG_ERROR, 0, sequence, 0)
        refusal, stamp = header[4:6], header[8:12]
        missing = iter(endings)
        agreed = True
        while True:
            data = self._receive()
            if data[8:12] != stamp:
                continue  # left over from a request that ended with an exception
            if data[4:6] == refusal:
                answer = codec.answer(next(codec.messages(data)))
                if answer.code not in (0, errno.ENOENT):
                    raise NetlinkError([answer])
                return agreed and answer.code == 0 and next(missing, None) is None
            ending = next(missing, None)
            agreed = agreed and ending is not None and data.endswith(ending)

    def dump(self, kind: int, payload: bytes) -> list[codec.Message]:
        """Ask for a listing, again and again while others change it. Raises DataplaneError if they do not stop."""
        found = self.dump_what_is_there(kind, payload)
        if found.interrupted:
            raise DataplaneError(f"the listing was interrupted by other writers {DUMP_ATTEMPTS} times")
        return found.messages

    def dump_what_is_there(self, kind: int, payload: bytes) -> codec.Listing:
        """As `dump`, but where others do not stop, the last attempt is what there is."""
        return codec.list_until_whole(lambda: self._dump_once(kind, payload), DUMP_ATTEMPTS)

    def _dump_once(self, kind: int, payload: bytes) -> codec.Listing:
        sequence = self.next_sequence()
        self._send(codec.message(kind, codec.NLM_F_REQUEST | codec.NLM_F_DUMP, sequence, payload))
        return self._collect(sequence)

    def batch(self, requests: bytes, *, first_sequence: int, last_sequence: int) -> None:
        """Send one batch in one datagram; `first_sequence` begins it, `last_sequence` asks for an acknowledgement.

        The kernel answers refusals message by message and applies nothing if there is one. A refusal of the batch as
        a whole (no privilege, no memory, a loop among chains) names the first message.
        """
        self._drain()
        self._send(requests)
        refused: list[codec.Answer] = []
        while True:
            for reply in codec.messages(self._receive()):
                if reply.type != codec.NLMSG_ERROR:
                    continue
                answer = codec.answer(reply)
                if answer.code:
                    refused.append(answer)
                if answer.sequence == last_sequence or (answer.code and answer.sequence == first_sequence):
                    self._collect_refusals(refused)
                    if refused:
                        raise NetlinkError(refused)
                    return

    def _collect_refusals(self, refused: list[codec.Answer]) -> None:
        """Refusals are queued before the acknowledgement; take what else is there without waiting."""
        for data in self._drain():
            for reply in codec.messages(data):
                if reply.type == codec.NLMSG_ERROR and (answer := codec.answer(reply)).code:
                    refused.append(answer)

    def _collect(self, sequence: int) -> codec.Listing:
        found: list[codec.Message] = []
        interrupted = False
        while True:
            for reply in codec.messages(self._receive()):
                if reply.sequence != sequence:
                    continue  # left over from a request that ended with an exception
                interrupted |= bool(reply.flags & codec.NLM_F_DUMP_INTR)
                if reply.type in (codec.NLMSG_ERROR, codec.NLMSG_DONE):
                    answer = codec.answer(reply)
                    if answer.code and answer.code != errno.EINTR:
                        raise NetlinkError([answer])
                    return codec.Listing(found, interrupted or answer.code == errno.EINTR)
                found.append(reply)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise DataplaneError(f"{len(data)} bytes for the kernel were not taken: {error}") from error

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(DATAGRAM_BYTES)
        except OSError as error:
            raise DataplaneError(f"no answer from the kernel: {error}") from error

    def _drain(self) -> list[bytes]:
        """Everything that waits in the socket, without blocking."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(DATAGRAM_BYTES, socket.MSG_DONTWAIT))
        return found

    def _raise_buffer(self, force: int, plain: int, size_bytes: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, force, size_bytes)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, plain, size_bytes)
