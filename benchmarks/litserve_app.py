"""The same model behind LitServe, for `serving_bench.py`.

python benchmarks/litserve_app.py MODEL.onnx PORT THREADS MAX_BATCH

Annotations are not postponed here: LitServe looks at that of `decode_request` to see whether a request is a form.
"""

import sys

import litserve
import numpy as np
import onnxruntime
from fastapi import Request, Response

from metaspec_contract.conditions import check_conditions
from metaspec_contract.model import parse_metadata


class Model(litserve.LitAPI):  # type: ignore[misc]  # LitServe is not installed with the tests
    """Bit-packed structures in an uploaded file to raw float32 spectra: binary both ways, as every contender."""

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(sys.argv[3])
        self.session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
        self.conditions = parse_metadata(self.session.get_modelmeta().custom_metadata_map).conditions

    def decode_request(self, request: Request) -> np.ndarray:
        bits = np.frombuffer(request["structures"].file.read(), np.uint8)
        return np.unpackbits(bits).reshape(-1, 1, 128, 128).astype(np.float32)

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs

    def predict(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        structures = np.concatenate(inputs)
        defaults = check_conditions(self.conditions, {}, len(structures))
        spectra = self.session.run(None, {"structure": structures, **defaults})[0]
        return np.split(spectra, np.cumsum([len(one) for one in inputs])[:-1])

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        return output

    def encode_response(self, output: np.ndarray) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    # With `mcp` but without `fastmcp`, LitServe 0.2.19 does not start. The benchmark needs neither.
    litserve.server._MCP_AVAILABLE = False
    api = Model(max_batch_size=int(sys.argv[4]), batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
