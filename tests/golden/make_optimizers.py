#!/usr/bin/env python3
"""Makes optimizers.json: some steps of torch.optim.AdamW and torch.optim.SGD on one small parameter, and of AdamW with one second moment per
row, for which PyTorch has no optimizer, written down in tensors. For tests/memory_server/optimizer_test.cc.

Run: python tests/golden/make_optimizers.py   (torch 2.11)
"""
import json
import pathlib

import torch

ROWS, ROW, STEPS = 3, 7, 6
BETAS, EPSILON = (0.9, 0.95), 1e-8


class RowWiseAdamW:
    """torch.optim.AdamW's step with the row's mean of squares in place of each element's square."""

    def __init__(self, parameters, lr, betas, eps, weight_decay):
        self.parameter, = parameters
        self.param_groups = [{"lr": lr, "weight_decay": weight_decay}]
        self.betas, self.eps, self.t = betas, eps, 0
        self.m, self.v = torch.zeros_like(self.parameter), torch.zeros(self.parameter.shape[0], 1)

    @torch.no_grad()
    def step(self):
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        self.t += 1
        p, g = self.parameter, self.parameter.grad
        p.mul_(1 - lr * decay)
        self.m.mul_(self.betas[0]).add_(g, alpha=1 - self.betas[0])
        self.v.mul_(self.betas[1]).add_(g.square().mean(dim=1, keepdim=True), alpha=1 - self.betas[1])
        root = (self.v / (1 - self.betas[1] ** self.t)).sqrt() + self.eps
        p.sub_(lr / (1 - self.betas[0] ** self.t) * self.m / root)


def run(make):
    torch.manual_seed(7)
    parameter = torch.nn.Parameter(torch.randn(ROWS, ROW))
    optimizer = make([parameter])
    golden = {"initial": parameter.detach().flatten().tolist(), "steps": []}
    for step in range(STEPS):
        group = optimizer.param_groups[0]
        group["lr"], group["weight_decay"] = 1e-2 / (1 + step), 0.1
        parameter.grad = torch.randn(ROWS, ROW) * 10.0 ** (step - 3)
        if step == 2:
            parameter.grad.zero_()
        optimizer.step()
        golden["steps"].append({"learning_rate": group["lr"], "weight_decay": group["weight_decay"], "gradient": parameter.grad.flatten().tolist(),
                                "weights": parameter.detach().flatten().tolist()})
    return golden


adam = {"lr": 0.0, "betas": BETAS, "eps": EPSILON, "weight_decay": 0.0}
goldens = {"beta1": BETAS[0], "beta2": BETAS[1], "epsilon": EPSILON, "rows": ROWS, "row": ROW,
           "adamw": run(lambda parameters: torch.optim.AdamW(parameters, **adam, foreach=False, fused=False)),
           "sgd": run(lambda parameters: torch.optim.SGD(parameters, lr=0.0, foreach=False, fused=False)),
           "row_wise_adamw": run(lambda parameters: RowWiseAdamW(parameters, **adam))}
(pathlib.Path(__file__).parent / "optimizers.json").write_text(json.dumps(goldens) + "\n")
