"""Run by test_processes.py in two processes: training steps in which one of them has all gates closed."""

from dataclasses import replace

import torch
import torch.distributed as dist
from tiny_tasks import batch, task_opts

from dyn_d2.config.read import read_cfg
from dyn_d2.engine.trainer import DynTrainer, distribute
from dyn_d2.gating.meta_arch.dynamic import find_policy
from dyn_d2.utils.seeds import seed_all

from detectron2.utils.events import EventStorage

CASES = [("classifier", "skipnet_rnn", "sp"), ("classifier", "skipnet_rnn", "hrl"), ("rcnn_fpn", "skipnet_rnn", "hrl"),
         ("classifier", "cdb", "")]  # fmt: skip


def step(task: str, policy: str, stage: str, closed: bool) -> None:
    keys = {"MODEL__POLICY__NAME": policy, "MODEL__POLICY__STAGE": stage}
    cfg = read_cfg("", task_opts(task, **keys, MODEL__GATED__UNIT="group" if policy == "cdb" else "block"))
    seed_all("model")
    model = DynTrainer.build_model(cfg)
    optimizer = DynTrainer.build_optimizer(cfg, model)
    gates = find_policy(model.backbone)
    if closed:
        decide = gates.decide

        def nothing(*args):
            decision = decide(*args)
            return replace(decision, gate=decision.gate - decision.gate.detach())

        gates.decide = nothing
    wrapped = distribute(model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):
        seed_all("batch", dist.get_rank())
        with EventStorage() as storage:
            losses = wrapped(batch())
        rates = [value for name, (value, _) in storage.latest().items() if name.startswith("gate_rate/")]
        assert rates and (sum(rates) == 0 if closed else sum(rates) > 0)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    moved = 0
    for old, parameter in zip(before, model.parameters(), strict=True):
        of_all = [torch.empty_like(parameter) for _ in range(2)]
        dist.all_gather(of_all, parameter.detach())
        assert torch.equal(*of_all)
        moved += not torch.equal(old, parameter)
    print(f"{task} {policy} {stage}: {moved} of {len(before)} parameters moved, all agree", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for case in CASES:
        step(*case, closed=dist.get_rank() == 1)
    dist.destroy_process_group()
