"""Memory is bounded (promise P8): a message of 1 GiB, 200 streams that stop in the middle of a block, 500 idle sockets and hostile counts, all
against one memory server process. Its peak resident set stays below what its limits add up to, and a well-behaved client goes on meanwhile.
Prints what the server took."""
import contextlib
import json
import os
import pathlib
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import grpc

SOURCE = pathlib.Path(os.environ.get("MEMBANK_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[3]))
BINARY = pathlib.Path(os.environ["MEMBANK_BIN_DIR"]) / "membank-memory-server"
MIB = 1 << 20
QUOTA, PUSH_BUDGET, SLACK = 64 * MIB, 32 * MIB, 96 * MIB
SPEC = {"anchor_fingerprint": "aa", "bank_id": "limits", "dtype": "F32", "fan_out": 256, "hidden": 64, "layers": 8, "seed": 11,
        "tree_fingerprint": "bb", "type": "ffn", "widths": [341]}
BLOCK_BYTES = 3 * 8 * 64 * 341 * 4  # 2 MiB
SERVICE = "/membank.v1.MemoryService/"


def generate(directory):
    subprocess.run(["protoc", f"-I{SOURCE}/proto", f"--python_out={directory}", "membank/v1/types.proto", "membank/v1/memory.proto"], check=True)
    sys.path.insert(0, str(directory))
    from membank.v1 import memory_pb2, types_pb2
    return memory_pb2, types_pb2


class Limits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        root = pathlib.Path(cls.stack.enter_context(tempfile.TemporaryDirectory(prefix="membank-limits-")))
        (root / "generated").mkdir()
        cls.pb, cls.types = generate(root / "generated")
        (root / "spec.json").write_text(json.dumps(SPEC))
        cls.log = open(root / "log", "wb")
        cls.server = subprocess.Popen([BINARY, "--listen", "127.0.0.1:0", "--admin-listen", "", "--data-dir", root / "data", "--bank-spec", root / "spec.json",
                                       "--ready-file", root / "ready", "--memory-quota-bytes", str(QUOTA), "--push-budget-bytes", str(PUSH_BUDGET),
                                       "--generated-cache-bytes", str(8 * MIB)], stdout=cls.log, stderr=cls.log)
        cls.stack.callback(cls.server.kill)
        deadline = time.monotonic() + 30
        while not (root / "ready").exists():
            assert cls.server.poll() is None and time.monotonic() < deadline, (root / "log").read_text()
            time.sleep(0.02)
        cls.address = json.loads((root / "ready").read_text())["listen"]
        cls.channel = grpc.insecure_channel(cls.address)
        cls.healthy()
        cls.base = cls.status("VmRSS")

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        cls.stack.close()
        cls.server.wait()

    @classmethod
    def status(cls, key):
        for line in pathlib.Path(f"/proc/{cls.server.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(key)

    @classmethod
    def healthy(cls):
        """A fetch of one block; the seconds it took."""
        begin = time.monotonic()
        request = cls.pb.FetchBlocksRequest(blocks=[cls.pb.FetchBlocksRequest.Block(id=cls.types.BlockId(level=1, cluster=3))])
        call = cls.channel.unary_stream(SERVICE + "FetchBlocks", cls.pb.FetchBlocksRequest.SerializeToString, cls.pb.FetchChunk.FromString)
        received = sum(len(chunk.data) for chunk in call(request, timeout=20))
        assert received == BLOCK_BYTES, received
        return time.monotonic() - begin

    def check_peak(self, what):
        peak = self.status("VmHWM")
        print(f"{what}: peak {(peak - self.base) / MIB:.0f} MiB over {self.base / MIB:.0f} MiB", flush=True)
        self.assertLess(peak - self.base, QUOTA + PUSH_BUDGET + SLACK, what)
        self.assertIsNone(self.server.poll())

    def refused(self, method, message, kind="unary_unary"):
        with grpc.insecure_channel(self.address, options=[("grpc.max_send_message_length", -1)]) as channel:
            call = getattr(channel, kind)(SERVICE + method)
            with self.assertRaises(grpc.RpcError) as caught:
                answer = call(iter([message]) if kind.startswith("stream") else message, timeout=60)
                if kind.endswith("stream"):
                    list(answer)
            return caught.exception.code()

    def test_1_a_message_of_1_gib(self):
        message = bytes(1 << 30)
        code = self.refused("PrepareStep", message)
        self.assertIn(code, (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE))
        del message
        self.healthy()
        self.check_peak("a message of 1 GiB")

    def test_2_hostile_counts(self):
        invalid, budget = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
        many = self.pb.FetchBlocksRequest(blocks=[self.pb.FetchBlocksRequest.Block(id=self.types.BlockId(level=1))] * 65537)
        self.assertEqual(self.refused("FetchBlocks", many.SerializeToString(), "unary_stream"), invalid)
        rules = self.pb.SetAccessRequest()
        rules.table.epoch = 1
        for cluster in range(70000):
            rules.table.rules.add(owner="x").prefix.cluster = cluster
        self.assertEqual(self.refused("SetAccess", rules.SerializeToString()), invalid)
        self.begin_run()
        for header, code in ((dict(block_count=2**32 - 1), invalid), (dict(block_count=1, rank=2**32 - 1), invalid)):
            push = self.pb.PushChunk(push=self.pb.PushHeader(run_id="r", epoch=1, step=1, **header))
            self.assertEqual(self.refused("PushGradients", push.SerializeToString(), "stream_unary"), code)
        for size in (0, BLOCK_BYTES + 1, 2**63):
            push = self.pb.PushChunk(push=self.pb.PushHeader(run_id="r", epoch=1, step=1, block_count=1))
            block = self.pb.PushChunk(block=self.pb.GradientHeader(id=self.types.BlockId(level=1), dtype=1, total_bytes=size))
            self.assertIn(self.refused("PushGradients", push.SerializeToString() + block.SerializeToString(), "stream_unary"), (invalid, budget))
        self.check_peak("hostile counts")

    def begin_run(self):
        request = self.pb.BeginRunRequest(run_id="r", epoch=1, world_size=4096, first_step=1, optimizer=2, epsilon=1e-8)
        self.channel.unary_unary(SERVICE + "BeginRun", self.pb.BeginRunRequest.SerializeToString)(request, timeout=20)

    def test_3_200_slow_streams(self):
        """Each pushes all of a block but its last bytes and then stalls: 400 MiB, of which the push budget takes its share and refuses the rest."""
        self.begin_run()
        release, refused, held = threading.Event(), [], []

        def push(channel, rank):
            def chunks():
                yield self.pb.PushChunk(push=self.pb.PushHeader(run_id="r", epoch=1, step=1, rank=rank, block_count=1)).SerializeToString()
                yield self.pb.PushChunk(block=self.pb.GradientHeader(id=self.types.BlockId(level=1), dtype=1, total_bytes=BLOCK_BYTES)).SerializeToString()
                for _ in range(0, BLOCK_BYTES - MIB // 2, MIB // 2):
                    yield self.pb.PushChunk(data=bytes(MIB // 2)).SerializeToString()
                held.append(rank)
                release.wait(60)

            try:
                channel.stream_unary(SERVICE + "PushGradients")(chunks(), timeout=60)
            except grpc.RpcError as error:
                refused.append(error.code())

        with contextlib.ExitStack() as stack:
            channels = [stack.enter_context(grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])) for _ in range(8)]
            threads = [threading.Thread(target=push, args=(channels[rank % 8], rank)) for rank in range(200)]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 20
            while len(refused) < 180 and time.monotonic() < deadline:
                time.sleep(0.05)
            slowest = max(self.healthy() for _ in range(5))
            budget_refusals = refused.count(grpc.StatusCode.RESOURCE_EXHAUSTED)
            release.set()
            for thread in threads:
                thread.join()
        print(f"200 slow streams: {budget_refusals} refused for the budget, a healthy fetch took at most {slowest * 1000:.0f} ms", flush=True)
        self.assertGreaterEqual(budget_refusals, 150)
        self.assertLess(slowest, 5)
        self.check_peak("200 slow streams")

    def test_4_500_idle_sockets(self):
        host, port = self.address.rsplit(":", 1)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(500)]
            self.healthy()
            begin, open_sockets = time.monotonic(), set(sockets)
            while open_sockets and time.monotonic() - begin < 20:
                for one in select.select(list(open_sockets), [], [], 0.5)[0]:
                    try:
                        gone = one.recv(4096) == b""
                    except ConnectionError:
                        gone = True
                    if gone:
                        open_sockets.discard(one)
            took = time.monotonic() - begin
        print(f"500 idle sockets: all closed after {took:.1f} s", flush=True)
        self.assertFalse(open_sockets)
        self.assertLess(took, 10)
        self.healthy()
        self.check_peak("500 idle sockets")


if __name__ == "__main__":
    unittest.main()
