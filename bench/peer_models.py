"""Makes the model files of the engines that compare.py measures bitm against.

python bench/peer_models.py build/bench/peers

BERT-base with random weights, as its encoder alone (`encoder`) and with the masked-LM head at one
position of each sequence (`head`), each as users of that engine would prepare it:

- ONNX: exported; attention, GELU and LayerNorm fused by onnxruntime's optimizer for BERT; int8 by
  `quantize_dynamic` of every matrix product;
- OpenVINO: converted; weights and activations made int8 by `nncf.quantize` for transformers.

All sequences are of full length, so the models take no attention mask: the peers skip that work.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nncf
import onnx
import openvino
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions
from transformers import BertConfig, BertForMaskedLM

TASKS = ("encoder", "head")
# A calibration of random weights finds no better ranges in more data.
N_CALIBRATION, CALIBRATION_LENGTH = 16, 64


class Bert(torch.nn.Module):  # type: ignore[misc]
    """BERT-base with random weights: `encoder` or, with logits at one position, `head`."""

    def __init__(self, task: str, attention: str = "sdpa") -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(attn_implementation=attention)
        self.model = BertForMaskedLM(config).eval()
        self.task = task
        # The form of attention that onnxruntime's optimizer knows has a mask.
        self.masked = attention == "eager"

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """int64 [B, S], [B] -> the last hidden states [B, S, 768], or logits [B, 30522]."""
        mask = torch.ones_like(input_ids) if self.masked else None
        types = torch.zeros_like(input_ids)
        states = self.model.bert(input_ids, mask, types).last_hidden_state
        if self.task == "encoder":
            return states
        index = positions[:, None, None].expand(-1, 1, states.shape[2])
        return self.model.cls(states.gather(1, index)[:, 0])


def example(batch: int = 2, length: int = CALIBRATION_LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [B, S] and the position [B] that is asked for."""
    ids = torch.randint(1000, BertConfig().vocab_size, (batch, length))
    return ids, torch.full((batch,), length // 2)


def make_onnx(task: str, folder: Path) -> None:
    """Writes TASK.onnx and TASK.int8.onnx."""
    names = ["input_ids", "positions"]
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "exported.onnx"
        torch.onnx.export(
            Bert(task, "eager"),
            example(),
            str(exported),
            input_names=names,
            output_names=["output"],
            dynamic_axes={"input_ids": {0: "batch", 1: "length"}, "positions": {0: "batch"}},
            dynamo=False,
        )
        options = FusionOptions("bert")
        options.enable_embed_layer_norm = False  # it takes a wrong table for that of positions
        fused = optimizer.optimize_model(
            str(exported),
            model_type="bert",
            num_heads=12,
            hidden_size=768,
            optimization_options=options,
            opt_level=0,
        )
    n_fused = fused.get_fused_operator_statistics()["Attention"]
    if n_fused != 12:
        raise SystemExit(f"onnxruntime's optimizer fused {n_fused} of 12 attentions")
    plain = folder / f"{task}.onnx"
    fused.save_model_to_file(str(plain))
    quantize_dynamic(
        plain,
        folder / f"{task}.int8.onnx",
        op_types_to_quantize=["MatMul", "Attention"],
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def make_openvino(task: str, folder: Path) -> None:
    """Writes TASK.xml and TASK.int8.xml, each with its .bin."""
    model = openvino.convert_model(Bert(task), example_input=example())
    openvino.save_model(model, folder / f"{task}.xml", compress_to_fp16=False)
    names = {port.get_any_name() for port in model.inputs}
    samples = []
    for _ in range(N_CALIBRATION):
        ids, positions = example()
        sample = {"input_ids": ids.numpy(), "positions": positions.numpy()}
        samples.append({name: sample[name] for name in names})
    quantized = nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=N_CALIBRATION,
        model_type=nncf.ModelType.TRANSFORMER,
    )
    openvino.save_model(quantized, folder / f"{task}.int8.xml", compress_to_fp16=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where 1.5 GB are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        with torch.no_grad():
            make_onnx(task, folder)
            make_openvino(task, folder)


if __name__ == "__main__":
    main()
