#!/usr/bin/env python3
"""Makes adamw.json: some steps of torch.optim.AdamW on one small parameter, for tests/memory_server/optimizer_test.cc.

Run: python tests/golden/make_adamw.py   (torch 2.11)
"""
import json
import pathlib

import torch

torch.manual_seed(7)
SIZE, STEPS = 23, 6
BETAS, EPSILON = (0.9, 0.95), 1e-8

parameter = torch.nn.Parameter(torch.randn(SIZE))
optimizer = torch.optim.AdamW([parameter], lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=0.0, foreach=False, fused=False)
golden = {"beta1": BETAS[0], "beta2": BETAS[1], "epsilon": EPSILON, "initial": parameter.detach().tolist(), "steps": []}
for step in range(STEPS):
    group = optimizer.param_groups[0]
    group["lr"], group["weight_decay"] = 1e-2 / (1 + step), 0.1
    parameter.grad = torch.randn(SIZE) * 10.0 ** (step - 3)
    if step == 2:
        parameter.grad.zero_()
    optimizer.step()
    golden["steps"].append({"learning_rate": group["lr"], "weight_decay": group["weight_decay"], "gradient": parameter.grad.tolist(),
                            "weights": parameter.detach().tolist()})
path = pathlib.Path(__file__).parent / "adamw.json"
path.write_text(json.dumps(golden, indent=1) + "\n")
