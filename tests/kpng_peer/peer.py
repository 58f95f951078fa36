"""A client of KPNG's API that shares nothing with hansa: stubs that grpcio-tools makes of the .proto files beside it.

    peer.py FOLDER TARGET local|global [CA CERTIFICATE KEY]

FOLDER: where the stubs go. Standard input: a node's name, or an empty line, per request; standard output: one JSON line
for every operation. Ends when standard input does.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from pathlib import Path

import grpc
from grpc_tools import protoc

HERE = Path(__file__).parent
FILES = ("api/localv1/api.proto", "api/globalv1/api.proto")


def stubs(folder: str) -> None:
    if not Path(folder, "api", "globalv1", "api_pb2_grpc.py").exists():
        code = protoc.main(["protoc", f"-I{HERE}", f"--python_out={folder}", f"--grpc_python_out={folder}", *FILES])
        assert code == 0
    sys.path.insert(0, folder)


def main() -> None:
    folder, target, api, *files = sys.argv[1:]
    stubs(folder)
    from api.globalv1 import api_pb2 as globalv1
    from api.globalv1 import api_pb2_grpc as globalv1_grpc
    from api.localv1 import api_pb2 as localv1
    from api.localv1 import api_pb2_grpc as localv1_grpc
    from google.protobuf.json_format import MessageToDict

    types = {
        localv1.ServicesSet: localv1.Service,
        localv1.EndpointsSet: localv1.Endpoint,
        localv1.GlobalServiceInfos: globalv1.ServiceInfo,
        localv1.GlobalEndpointInfos: globalv1.EndpointInfo,
        localv1.GlobalNodeInfos: globalv1.NodeInfo,
    }
    if files:
        ca, certificate, key = (Path(name).read_bytes() if name else None for name in files)
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate))
    else:
        channel = grpc.insecure_channel(target)
    requests: queue.Queue[object] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            local = localv1.WatchReq(NodeName=line.strip())
            requests.put(local if api == "local" else globalv1.GlobalWatchReq())
        requests.put(None)

    threading.Thread(target=read, daemon=True).start()
    stub = localv1_grpc.SetsStub(channel) if api == "local" else globalv1_grpc.SetsStub(channel)
    try:
        for op in stub.Watch(iter(requests.get, None)):
            kind = op.WhichOneof("Op")
            line: dict[str, object] = {"op": kind}
            if kind == "Set":
                value = types[op.Set.Ref.Set].FromString(op.Set.Bytes)
                line |= {
                    "set": localv1.Set.Name(op.Set.Ref.Set),
                    "path": op.Set.Ref.Path,
                    "value": MessageToDict(value),
                }
                # Which messages are there at all: Go crashes on some that are not.
                line["fields"] = sorted(field.name for field, _ in value.ListFields())
            elif kind == "Delete":
                line |= {"set": localv1.Set.Name(op.Delete.Set), "path": op.Delete.Path}
            print(json.dumps(line), flush=True)
    except grpc.RpcError as error:
        print(json.dumps({"op": "error", "code": error.code().name, "details": error.details()}), flush=True)


if __name__ == "__main__":
    main()
