"""A client made from the .proto files alone, in another language, against a real memory server process: fetches blocks and checks their
checksums, pushes a gradient, commits the step and sees the new version. Needs Debian's python3-grpcio, python3-protobuf and protoc."""

import array
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import grpc

SOURCE = pathlib.Path(os.environ.get("MEMBANK_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[3]))
BINARY = pathlib.Path(os.environ["MEMBANK_BIN_DIR"]) / "membank-memory-server"
SPEC = {"anchor_fingerprint": "aa", "bank_id": "python", "dtype": "F32", "fan_out": 4, "hidden": 64, "layers": 4, "seed": 11,
        "tree_fingerprint": "bb", "type": "ffn", "widths": [512, 8]}
DEADLINE = 20 * int(os.environ.get("MEMBANK_TIME_SCALE", 1))


def crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def generate(directory):
    """types_pb2 and memory_pb2 from the .proto files; the calls' names and message types are all that is needed besides."""
    subprocess.run(["protoc", f"-I{SOURCE}/proto", f"--python_out={directory}", "membank/v1/types.proto", "membank/v1/memory.proto"],
                   check=True)
    sys.path.insert(0, str(directory))
    from membank.v1 import memory_pb2, types_pb2
    return memory_pb2, types_pb2


class PythonClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory(prefix="membank-python-")
        root = pathlib.Path(cls.scratch.name)
        (root / "generated").mkdir()
        cls.pb, cls.types = generate(root / "generated")
        (root / "spec.json").write_text(json.dumps(SPEC))
        ready = root / "ready.json"
        cls.server = subprocess.Popen([BINARY, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", root / "data",
                                       "--bank-spec", root / "spec.json", "--ready-file", ready, "--log-level", "warn"])
        end = time.monotonic() + DEADLINE
        while not ready.exists():
            assert cls.server.poll() is None, f"the server ended with code {cls.server.returncode}"
            assert time.monotonic() < end, "the server did not get ready"
            time.sleep(0.02)
        cls.addresses = json.loads(ready.read_text())
        cls.channel = grpc.insecure_channel(cls.addresses["listen"])

    @classmethod
    def tearDownClass(cls):
        cls.channel.close()
        cls.server.send_signal(signal.SIGTERM)
        code = cls.server.wait(DEADLINE)
        cls.scratch.cleanup()
        assert code == 0, f"the server ended with code {code}"

    def call(self, name, request, reply, shape="unary_unary"):
        rpc = getattr(self.channel, shape)(f"/membank.v1.MemoryService/{name}", request_serializer=type(request[0]).SerializeToString
                                           if isinstance(request, list) else type(request).SerializeToString,
                                           response_deserializer=reply.FromString)
        return rpc(iter(request) if isinstance(request, list) else request, timeout=DEADLINE)

    def block(self, level, cluster):
        return self.types.BlockId(level=level, cluster=cluster)

    def elements(self, level):
        return 3 * SPEC["layers"] * SPEC["hidden"] * SPEC["widths"][level - 1]

    def fetch(self, ids, **options):
        """[(header, payload)], every payload checked against its checksum."""
        request = self.pb.FetchBlocksRequest(blocks=[self.pb.FetchBlocksRequest.Block(id=self.block(*i)) for i in ids], **options)
        blocks = []
        for chunk in self.call("FetchBlocks", request, self.pb.FetchChunk, "unary_stream"):
            if chunk.HasField("header"):
                blocks.append((chunk.header, bytearray()))
            self.assertLessEqual(len(chunk.data), 512 * 1024)
            blocks[-1][1].extend(chunk.data)
        for header, payload in blocks:
            self.assertEqual(len(payload), header.total_bytes)
            self.assertEqual(crc32c(payload), header.crc32c)
        return blocks

    def push(self, step, level, cluster, value):
        data = array.array("f", [value] * self.elements(level)).tobytes()
        header = self.pb.PushHeader(run_id="python", epoch=1, rank=0, step=step, block_count=1)
        block = self.pb.GradientHeader(id=self.block(level, cluster), dtype=self.pb.GRADIENT_DTYPE_F32, total_bytes=len(data))
        chunks = [self.pb.PushChunk(push=header), self.pb.PushChunk(block=block, data=data[:100000])]
        chunks += [self.pb.PushChunk(data=data[i:i + 100000]) for i in range(100000, len(data), 100000)]
        chunks[-1].crc32c = crc32c(data)
        return self.call("PushGradients", chunks, self.pb.PushAck, "stream_unary")

    def test_0_manifest(self):
        manifest = self.call("GetManifest", self.pb.GetManifestRequest(), self.pb.Manifest)
        self.assertEqual(manifest.wire_version, 2)
        self.assertEqual(list(manifest.spec.widths), SPEC["widths"])
        self.assertEqual(manifest.head_step, 0)

    def test_1_fetch(self):
        blocks = self.fetch([(1, 0), (1, 4), (2, 15)])
        self.assertEqual([(b.id.level, b.id.cluster, b.version) for b, _ in blocks], [(1, 0, 0), (1, 4, 0), (2, 15, 0)])
        self.assertEqual([len(p) for _, p in blocks], [4 * self.elements(1)] * 2 + [4 * self.elements(2)])
        self.assertNotEqual(blocks[0][1], blocks[1][1])

    def test_2_errors(self):
        with self.assertRaises(grpc.RpcError) as error:
            self.fetch([(1, 0), (7, 0)])
        self.assertEqual(error.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("7/0", error.exception.details())

    def test_3_learn(self):
        run = self.pb.BeginRunRequest(run_id="python", epoch=1, world_size=1, first_step=1, optimizer=self.pb.OPTIMIZER_KIND_SGD, beta1=0.9,
                                      beta2=0.95, epsilon=1e-8)
        self.call("BeginRun", run, self.pb.BeginRunReply)
        before = self.fetch([(1, 2)])[0][1]
        for step in (1, 2):
            self.assertEqual(self.push(step, 1, 2, -3.0).result, self.pb.PUSH_RESULT_ACCEPTED)
            self.assertEqual(self.push(step, 1, 2, -3.0).result, self.pb.PUSH_RESULT_DUPLICATE)
            step_id = self.pb.StepId(run_id="python", epoch=1, step=step)
            prepared = self.call("PrepareStep", self.pb.PrepareStepRequest(step=step_id), self.pb.PrepareStepReply)
            self.assertEqual(prepared.sum_of_squares, 9.0 * self.elements(1))
            apply = self.pb.ApplyStepRequest(step=step_id, scale=1.0, learning_rate=1.0)
            self.assertEqual(self.call("ApplyStep", apply, self.pb.ApplyStepReply).head_step, step)
        header, after = self.fetch([(1, 2)], min_step=2)[0]
        self.assertEqual(header.version, 2)
        # The down projection, the last third of a layer, starts at zero: its value is the count of what was pushed.
        layer = self.elements(1) // SPEC["layers"]
        down = struct.unpack_from(f"<{layer // 3}f", after, 4 * (layer * 2 // 3))
        self.assertEqual(set(down), {6.0})
        self.assertEqual(set(struct.unpack_from(f"<{layer // 3}f", before, 4 * (layer * 2 // 3))), {0.0})

    def test_4_unchanged(self):
        request = self.pb.FetchBlocksRequest(blocks=[self.pb.FetchBlocksRequest.Block(id=self.block(1, 2), if_version_newer_than=2)])
        chunks = list(self.call("FetchBlocks", request, self.pb.FetchChunk, "unary_stream"))
        self.assertEqual([(c.header.unchanged, len(c.data)) for c in chunks], [(True, 0)])


if __name__ == "__main__":
    unittest.main(verbosity=2)
