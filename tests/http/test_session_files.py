# SPDX-License-Identifier: Apache-2.0
"""States in and out: what a file must be to be taken, and what a body leaves behind (nothing)."""

import json
import os
import pathlib
import struct
import threading

import pytest
import xxhash

from harness import models
from harness.program import behind_mounts, wait_until
from harness.raw import RawConnection

pytestmark = pytest.mark.own_server

PROMPT = "ROMEO:\nO, she doth teach the torches to burn bright!\n"
GREEDY = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
STATE = "/v1/sessions/s/state"
ZEROS = b"0" * 32


def seal(state):
    """The state with its checksum made to fit: what is wrong with it must be found elsewhere."""
    if b'"checksum":"' not in state:
        return state
    at = state.index(b'"checksum":"') + len(b'"checksum":"')
    digest = xxhash.xxh3_128_hexdigest(state[:at] + ZEROS + state[at + 32:]).encode()
    return state[:at] + digest + state[at + 32:]


def header_of(state):
    (length,) = struct.unpack("<Q", state[:8])
    return json.loads(state[8:8 + length]), 8 + length


def with_header(state, change):
    """The state with its header changed by change(header), sealed, at its old length."""
    header, data = header_of(state)
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= data - 8
    return seal(state[:8] + text.ljust(data - 8) + state[data:])


def with_float(state, name, value, at=0):
    header, data = header_of(state)
    begin = data + header[name]["data_offsets"][0] + 4 * at
    return seal(state[:begin] + struct.pack("<f", value) + state[begin + 4:])


def put(client, state, session="s"):
    return client.request("PUT", f"/v1/sessions/{session}/state", state)


@pytest.fixture
def server(start):
    own = start()
    own.client.complete(PROMPT, session="s", **GREEDY)
    own.client.complete(PROMPT, session="whole", max_tokens=0)  # its file has logits, nothing pending
    return own


def test_a_file_comes_back_as_it_went(server):
    client = server.client
    for name in ("s", "whole"):
        state = client.get(f"/v1/sessions/{name}/state")
        assert state.status == 200 and state.headers["Content-Type"] == "application/octet-stream"
        assert int(state.headers["Content-Length"]) == len(state.body)
        assert seal(state.body) == state.body
        created = put(client, state.body, "copy")
        assert created.status == 201
        assert created.json()["tokens"] == client.get(f"/v1/sessions/{name}").json()["tokens"]
        assert client.get("/v1/sessions/copy/state").body == state.body
        head = client.request("HEAD", f"/v1/sessions/{name}/state")
        assert head.status == 200 and head.body == b"" and int(head.headers["Content-Length"]) == len(state.body)


def metadata(key, value):
    return lambda header: header["__metadata__"].update({key: value})


HOSTILE = {
    "a byte changed": lambda s: s[:5000] + bytes([s[5000] ^ 1]) + s[5001:],
    "cut": lambda s: s[:-1],
    "cut and sealed": lambda s: seal(s[:-4]),
    "longer": lambda s: seal(s + b"x"),
    "the header alone": lambda s: s[:header_of(s)[1]],
    "a long header": lambda s: struct.pack("<Q", 1 << 60) + s[8:],
    "no header": lambda s: struct.pack("<Q", 0) + s[8:],
    "no JSON": lambda s: s[:8] + b"\xff" + s[9:],
    "another format": lambda s: with_header(s, metadata("format", "ssmd-session-9")),
    "another architecture": lambda s: with_header(s, metadata("architecture", "mamba2")),
    "another model": lambda s: with_header(s, metadata("model", "0" * 32)),
    "another type": lambda s: with_header(s, metadata("dtype", "F16")),
    "no tokens": lambda s: with_header(s, metadata("tokens", "0")),
    "negative tokens": lambda s: with_header(s, metadata("tokens", "-1")),
    "too many tokens": lambda s: with_header(s, metadata("tokens", "99999999999999999999")),
    "position behind the end": lambda s: with_header(s, metadata("position", "9999")),
    "strange last tokens": lambda s: with_header(s, metadata("last_tokens", "1 2 99999")),
    "no chain": lambda s: with_header(s, lambda h: h["__metadata__"].pop("chain")),
    "no metadata": lambda s: with_header(s, lambda h: h.pop("__metadata__")),
    "a strange memo": lambda s: with_header(s, metadata("memo", "abc")),
    "a long memo": lambda s: with_header(s, metadata("memo", "ab" * 257)),
    "no conv": lambda s: with_header(s, lambda h: h.pop("conv")),
    "another shape": lambda s: with_header(s, lambda h: h["ssm"]["shape"].reverse()),
    "overlapping": lambda s: with_header(s, lambda h: h["ssm"].update(data_offsets=[0, h["ssm"]["data_offsets"][1]])),
    "NaN": lambda s: with_float(s, "ssm", float("nan"), 1000),
    "infinity": lambda s: with_float(s, "conv", float("-inf")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_change_nothing(server, name):
    client = server.client
    for session in ("s", "whole"):
        state = client.get(f"/v1/sessions/{session}/state").body
        assert put(client, seal(state), session).status == 201, "the forger's hand is steady"
        hostile = HOSTILE[name](state)
        assert hostile != state
        put(client, hostile, session).error(400, "state")
        put(client, hostile, "new").error(400, "state")
        client.get("/v1/sessions/new").error(404)
        assert client.get(f"/v1/sessions/{session}/state").body == state
    put(client, with_float(client.get("/v1/sessions/whole/state").body, "logits", float("nan")), "whole").error(400)


def test_empty_and_foreign_bodies(server):
    client = server.client
    for body in (b"", b"junk", b"\0" * 5000, b"{}", b"\xff" * 5000):
        put(client, body).error(400, "state")


def test_another_models_state_is_refused(start):
    others = [f"{name}={models.folder(name)}" for name in ("induction-heads", "selective-copying")]
    one = start("--model", others[0]).client
    one.complete("abc", session="s", max_tokens=0)
    state = one.get(STATE).body
    two = start("--model", others[1]).client
    put(two, state).error(400, "state")
    both = start("--model", others[1], "--model", others[0]).client  # it goes to the model that it is of
    assert put(both, state).json()["model"] == "induction-heads"


# ---- on the way


def test_the_limit_is_the_states_own(start):
    """--max-body-bytes is for other bodies; what is longer than any state is not even read."""
    server = start("--max-body-bytes", "2K")
    client = server.client
    client.complete("ROMEO", session="s", **GREEDY)
    state = client.get(STATE).body
    assert len(state) > 100_000
    assert put(client, state, "t").status == 201
    with RawConnection("127.0.0.1", server.port) as raw:
        raw.send("PUT /v1/sessions/s/state HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        status, _, body = raw.read_answer()
        assert status == 413 and json.loads(body)["error"]["code"] == "body_too_large"
    client.post("/v1/sessions/s/fork", b" " * 3000).error(413)
    put(client, state, "a+b").error(404)
    client.request("PUT", "/v1/sessions/s", state).error(404)


def chunked(raw, data, size=1 << 16):
    for at in range(0, len(data), size):
        piece = data[at:at + size]
        raw.send(b"%x\r\n" % len(piece) + piece + b"\r\n")


def test_bodies_in_chunks(server):
    state = server.client.get(STATE).body
    head = "PUT /v1/sessions/c/state HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with RawConnection("127.0.0.1", server.port) as raw:
        raw.send(head)
        chunked(raw, state)
        raw.send("0\r\n\r\n")
        assert raw.read_answer()[0] == 201
        raw.send(head)  # the connection lives
        chunked(raw, state[:-1], 997)
        raw.send("0\r\n\r\n")
        assert raw.read_answer()[0] == 400
    with RawConnection("127.0.0.1", server.port) as raw:
        raw.send(head)
        try:
            chunked(raw, b"x" * (16 << 20))  # longer than any state: closed at last
        except ConnectionError:
            pass
        assert raw.is_closed(20)
    assert server.client.get("/v1/sessions/c/state").body == state


def spools(server):
    """(size, path) of the files without a name that the process has opened."""
    folder = f"/proc/{server.process.pid}/fd"
    found = []
    for name in os.listdir(folder):
        if name in ("0", "1", "2"):  # what it prints goes to such a file, too
            continue
        try:
            path = os.readlink(f"{folder}/{name}")
            if path.endswith("(deleted)") and "/ssmd-" not in path:
                found.append((os.stat(f"{folder}/{name}").st_size, path))
        except FileNotFoundError:
            pass
    return found


def test_a_body_goes_to_a_file_and_leaves_nothing(start, tmp_path):
    folder = tmp_path / "states"
    server = start("--state-dir", folder, "--durability", "sync")
    client = server.client
    client.complete(PROMPT, session="s", **GREEDY)
    state = client.get(STATE).body
    before = sorted(folder.rglob("*"))
    files = server.open_files()
    head = f"PUT /v1/sessions/t/state HTTP/1.1\r\nHost: x\r\nContent-Length: {len(state)}\r\n\r\n"
    with RawConnection("127.0.0.1", server.port) as raw:
        raw.send(head)
        raw.send(state[:200_000])
        (found,) = wait_until(lambda: [f for f in spools(server) if f[0] == 200_000], 10, "half of it in a file")
        assert found[1].startswith(str(folder))
        raw.send(state[200_000:])
        assert raw.read_answer()[0] == 201
    for leave in (RawConnection.close, RawConnection.reset):
        raw = RawConnection("127.0.0.1", server.port)
        raw.send(head.replace("/t/", "/u/"))
        raw.send(state[:-1])
        wait_until(lambda: [f for f in spools(server) if f[0] == len(state) - 1], 10, "all but a byte in a file")
        leave(raw)
        wait_until(lambda: not spools(server), 10, "the file is gone")
    with RawConnection("127.0.0.1", server.port) as raw:
        raw.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.read_answer()[0] == 200
        raw.send_last(head.replace("/t/", "/u/").encode() + state[:1000])
        wait_until(lambda: server.log().count("path=/v1/sessions/u/state status=499") == 3, 10, "all three are over")
        assert not spools(server)
    client.get("/v1/sessions/u").error(404)
    client.request("DELETE", "/v1/sessions/t")
    wait_until(lambda: server.open_files() <= files, 10, "no descriptor is left")
    assert sorted(folder.rglob("*")) == before


class SmallDisk:
    """A server whose sessions are in a file system of 8 MB, which fill() fills up."""

    def __init__(self, start, tmp_path):
        (tmp_path / "disk").mkdir()
        wrapper = behind_mounts(tmp_path, f'mount -t tmpfs -o size=8m none "{tmp_path}/disk"')
        if not wrapper:
            pytest.xfail("no mount namespace can be made here")
        self.server = start("--state-dir", tmp_path / "disk", "--durability", "sync", binary=wrapper)
        self.client = self.server.client
        self.folder = pathlib.Path(f"/proc/{self.server.process.pid}/root{tmp_path}/disk")
        for count in (1, 2):
            self.client.complete(PROMPT * count, session=f"s{count}", **GREEDY)
        self.states = [self.state("s1"), self.state("s2")]

    def state(self, name):
        return self.client.get(f"/v1/sessions/{name}/state").body

    def fill(self, room):
        wait_until(lambda: not spools(self.server), 10, "what the last answer was sent from is gone")
        free = os.statvfs(self.folder)
        with open(self.folder / "fill", "ab") as file:
            file.write(b"x" * (free.f_bavail * free.f_bsize - room))

    def empty(self):
        (self.folder / "fill").unlink()

    def files(self):
        return {path.name: path.read_bytes() for path in self.folder.rglob("*.session")}


def test_a_full_disk_takes_no_body(start, tmp_path):
    disk = SmallDisk(start, tmp_path)
    client, (one, two) = disk.client, disk.states
    files = disk.files()
    disk.fill(len(two) // 2)
    connection = client.connect()
    for _ in range(3):
        answer = client.request("PUT", "/v1/sessions/s1/state", two, connection=connection)
        assert "No space left" in answer.error(507, code="disk_full")["message"]
        assert client.request("PUT", "/v1/sessions/new/state", two, connection=connection).status == 507
    client.get("/v1/sessions/s1/state").error(507, code="disk_full")  # it goes out by a file, too
    connection.close()
    assert spools(disk.server) == [] and disk.files() == files
    client.get("/v1/sessions/new").error(404)
    disk.empty()
    assert disk.state("s1") == one and disk.state("s2") == two
    assert put(client, two, "s1").status == 201 and disk.state("s1") == two


def test_a_full_disk_keeps_no_session(start, tmp_path):
    """Room for a body, but not for the session's own file: the old one stays until there is."""
    disk = SmallDisk(start, tmp_path)
    client, (_, two) = disk.client, disk.states
    files = disk.files()
    disk.fill(len(two) * 3 // 2)
    assert "full" in put(client, two, "s1").error(507, code="disk_full")["message"]
    disk.fill(len(two) // 2)  # before it is tried again
    answer = client.post("/v1/completions", {"prompt": " and", "session": "s2", **GREEDY})
    assert "full" in answer.error(507, code="disk_full")["message"]
    assert disk.files() == files
    disk.empty()
    wait_until(lambda: disk.files().keys() == files.keys() and
               all(disk.files()[name] != files[name] for name in files), 30, "both are written")
    assert disk.state("s1") == two


def test_many_bodies_at_once(server):
    """So many files are open at most; one more is told to come again."""
    client = server.client
    state = client.get(STATE).body
    head = f"PUT /v1/sessions/t/state HTTP/1.1\r\nHost: x\r\nContent-Length: {len(state)}\r\n\r\n"
    waiting = [RawConnection("127.0.0.1", server.port) for _ in range(32)]
    for raw in waiting:
        raw.send(head)
        raw.send(state[:-1])
    wait_until(lambda: len(spools(server)) == 32, 20, "all of them in files")
    answer = put(client, state, "late")
    answer.error(503)
    assert answer.headers["Retry-After"] == "1"
    for raw in waiting:
        raw.send(state[-1:])
        assert raw.read_answer()[0] == 201
        raw.close()
    wait_until(lambda: put(client, state, "late").status == 201, 10, "there is room again")


def test_states_move_while_others_stream(server):
    """A hundred uploads and downloads beside a stream: nobody waits for anybody."""
    client = server.client
    state = client.get(STATE).body
    wrong = []

    def move(name):
        for _ in range(12):
            if put(client, state, name).status != 201 or client.get(f"/v1/sessions/{name}/state").body != state:
                wrong.append(name)

    with client.open_stream(PROMPT, session="long", max_tokens=300, ignore_eos=True) as events:
        threads = [threading.Thread(target=move, args=(f"m{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        assert len(list(events)) > 100
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_busy_session_is_not_replaced(server):
    client = server.client
    state = client.get(STATE).body
    with client.open_stream("x", session="s", max_tokens=100000, ignore_eos=True) as events:
        next(iter(events))
        answer = put(client, state)
        answer.error(409, code="session_busy")
        assert answer.headers["Retry-After"] == "1"
        assert client.get(STATE).body == state  # as of its last finished turn
    assert client.get(STATE).body == state
