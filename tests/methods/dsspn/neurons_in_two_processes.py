"""Run by test_dsspn_processes.py in two processes, whose images wake different neurons."""

import torch
import torch.distributed as dist

from dyn_d2.engine.trainer import distribute
from dyn_d2.hierarchy import load_hierarchy
from dyn_d2.methods.dsspn.head import DSSPNHead
from dyn_d2.utils.seeds import seed_all

from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage


def main() -> None:
    tree = load_hierarchy("digit_scenes")
    labels = {"scenes": list(tree.labels("digit_scenes").values())}
    seed_all("head")
    shapes = {"p2": ShapeSpec(channels=3, stride=4)}
    small = {"width": 4, "bottleneck": 4, "transition_channels": 4, "rates": (1,)}
    head = DSSPNHead(shapes, tree=tree, labels=labels, train_sets=["scenes"], **small)
    before = {name: value.detach().clone() for name, value in head.named_parameters()}
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    wrapped = distribute(head)
    shown = ["zero", "one"] if dist.get_rank() == 0 else ["sky", "water"]  # nobody shows a plant
    targets = torch.tensor([labels["scenes"].index(name) for name in shown]).repeat_interleave(8).expand(2, 16, 16)
    for step in range(3):
        seed_all("images", dist.get_rank(), step)
        with EventStorage():
            loss = wrapped({"p2": torch.rand(2, 3, 4, 4)}, targets)[1]["loss_sem_seg"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = set()
    for name, value in head.named_parameters():
        of_all = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(of_all, value.detach())
        assert torch.equal(*of_all), name
        if not torch.equal(before[name], value):
            moved.add(name.split(".")[1] if name.startswith("neurons") else "transition")
    print(f"moved: {sorted(moved)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    main()
    dist.destroy_process_group()
